//! Migrations that would keep Reserves waiting, or that the release before could not serve on, are
//! refused here.

use std::{fs, path::Path};

/// Migrations up to this one made the schema before anybody served on it.
const FIRST: i64 = 2;

/// A statement in capitals with single spaces, without comments and without what stands in quotes.
fn statements(sql: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        if rest.starts_with("--") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else if next == '\'' {
            rest = rest[1..].find('\'').map_or("", |end| &rest[end + 2..]);
            text += "''";
        } else if rest.starts_with("$$") {
            // A function's body runs when it is called, a DO block's at once.
            let end = rest[2..].find("$$").map_or(rest.len(), |end| end + 4);
            let body = &rest[2..end.saturating_sub(2)];
            if text.trim_end().to_uppercase().ends_with("DO") {
                text += &format!("; {} ;", statements(body).join(" ; "));
            }
            rest = &rest[end..];
        } else {
            text.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    text.split(';')
        .map(|one| one.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase())
        .map(|one| one.trim_start_matches("BEGIN ").to_owned())
        .filter(|one| !one.is_empty())
        .collect()
}

/// The word after `words` in a statement.
fn after<'a>(statement: &'a str, words: &str) -> Option<&'a str> {
    let (_, rest) = statement.split_once(words)?;
    let rest = rest.trim_start().trim_start_matches("ONLY ").trim_start_matches("IF NOT EXISTS ");
    rest.split([' ', '(']).next().filter(|word| !word.is_empty())
}

/// What is wrong with a migration.
fn lint(sql: &str) -> Vec<String> {
    let statements = statements(sql);
    let new: Vec<&str> = statements.iter().filter_map(|s| after(s, "CREATE TABLE ")).collect();
    let is_new = |table: Option<&str>| table.is_some_and(|table| new.contains(&table));
    let alone = sql.trim_start().starts_with("-- no-transaction");
    let mut wrong = Vec::new();
    let mut say = |why: &str, statement: &str| wrong.push(format!("{why}: {statement}"));
    if alone && (statements.len() != 1 || !statements[0].contains(" CONCURRENTLY ")) {
        say(
            "outside of a transaction stands one statement with CONCURRENTLY",
            &statements.join("; "),
        );
    }
    for s in &statements {
        let has = |words: &str| s.contains(words);
        if has("INDEX ") && (s.starts_with("CREATE ") || s.starts_with("DROP ")) {
            let table = after(s, " ON ");
            if has(" CONCURRENTLY ") && !alone {
                say("CONCURRENTLY takes a file that begins with -- no-transaction", s);
            } else if !has(" CONCURRENTLY ") && !is_new(table) {
                say("an index of a table in use is made and dropped CONCURRENTLY", s);
            }
        }
        for verb in ["DROP TABLE", "TRUNCATE", "LOCK ", "CLUSTER", "VACUUM", "REINDEX", "DROP TYPE"]
        {
            if s.starts_with(verb) {
                say("not beside a release that serves", s);
            }
        }
        if s.starts_with("UPDATE ") || s.starts_with("DELETE ") {
            say("rows change in bounded batches, by the sweeper", s);
        }
        if s.starts_with("ALTER TYPE") {
            say("the release before knows the type as it was", s);
        }
        if !s.starts_with("ALTER TABLE") || is_new(after(s, "ALTER TABLE ")) {
            continue;
        }
        if has(" DROP COLUMN") || has(" RENAME ") || has(" DROP CONSTRAINT") && has("PRIMARY") {
            say("the release before needs it", s);
        }
        if has(" TYPE ") && has("ALTER COLUMN") || has("SET LOGGED") || has("SET UNLOGGED") {
            say("rewrites the table", s);
        }
        if has("SET NOT NULL") {
            say("reads the whole table under a lock: a CHECK, NOT VALID and validated, first", s);
        }
        for column in s.split("ADD COLUMN").skip(1) {
            let column = column.split(", ADD ").next().unwrap_or(column);
            let volatile = ["RANDOM(", "GEN_RANDOM_UUID(", "CLOCK_TIMESTAMP(", "NEXTVAL("];
            if column.contains("NOT NULL") && !column.contains("DEFAULT") {
                say("the release before writes no such column", s);
            }
            if volatile.iter().any(|call| column.contains(call))
                || column.contains("SERIAL")
                || column.contains("GENERATED")
            {
                say("rewrites the table", s);
            }
            if ["UNIQUE", "PRIMARY KEY", "REFERENCES"].iter().any(|word| column.contains(word)) {
                say("reads or indexes the whole table under a lock", s);
            }
        }
        for constraint in s.split("ADD CONSTRAINT").skip(1) {
            let constraint = constraint.split(", ADD ").next().unwrap_or(constraint);
            let checked = constraint.contains(" CHECK ") || constraint.contains("FOREIGN KEY");
            if checked && !constraint.contains("NOT VALID") {
                say("added NOT VALID, validated by a later migration", s);
            }
            let indexed =
                ["UNIQUE", "PRIMARY KEY", "EXCLUDE"].iter().any(|w| constraint.contains(w));
            if indexed && !constraint.contains("USING INDEX") {
                say("made USING INDEX, of one that was built CONCURRENTLY", s);
            }
        }
        if has("ADD UNIQUE") || has("ADD PRIMARY KEY") || has("ADD CHECK") || has("ADD FOREIGN") {
            say("a constraint has a name, and is added as ADD CONSTRAINT", s);
        }
    }
    wrong
}

#[test]
fn every_migration_can_run_beside_replicas_that_serve() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("service/migrations");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut checked = 0;
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let version: i64 = name.split('_').next().unwrap().parse().unwrap();
        if version <= FIRST {
            continue;
        }
        assert_eq!(lint(&fs::read_to_string(&file).unwrap()), Vec::<String>::new(), "{name}");
        checked += 1;
    }
    assert!(checked > 0, "no migrations were found");
}

#[test]
fn what_would_keep_reserves_waiting_is_refused() {
    for bad in [
        "CREATE INDEX i ON package (holder)",
        "CREATE UNIQUE INDEX i ON package (holder)",
        "CREATE INDEX CONCURRENTLY i ON package (holder)",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY i ON draw (a); CREATE TABLE t (a int)",
        "-- no-transaction\nALTER TABLE package ADD COLUMN a int",
        "DROP INDEX package_not_after",
        "DROP TABLE draw",
        "ALTER TABLE package DROP COLUMN behind",
        "ALTER TABLE package RENAME COLUMN behind TO after",
        "ALTER TABLE package ALTER COLUMN behind TYPE bigint",
        "ALTER TABLE package ALTER COLUMN holder SET NOT NULL",
        "ALTER TABLE package ADD COLUMN a int NOT NULL",
        "ALTER TABLE package ADD COLUMN a uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE package ADD COLUMN a int UNIQUE",
        "ALTER TABLE package ADD COLUMN a int, ADD CONSTRAINT c CHECK (a > 0)",
        "ALTER TABLE package ADD CONSTRAINT c UNIQUE (holder)",
        "ALTER TABLE draw ADD CONSTRAINT f FOREIGN KEY (pool_id) REFERENCES pool (pool_id)",
        "ALTER TABLE package ADD CHECK (seq > 1)",
        "ALTER TYPE open_reservation ADD ATTRIBUTE a int",
        "UPDATE package SET behind = 0",
        "DO $$ BEGIN UPDATE draw SET open = NULL; END $$",
        "VACUUM FULL package",
        "LOCK TABLE package",
    ] {
        assert!(!lint(bad).is_empty(), "{bad}");
    }
}

#[test]
fn what_only_adds_is_fine() {
    for good in [
        "-- CREATE INDEX i ON package (holder)\nCREATE TABLE t (a int); CREATE INDEX i ON t (a)",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY i ON package (holder)",
        "ALTER TABLE package ADD COLUMN a int",
        "ALTER TABLE package ADD COLUMN a int NOT NULL DEFAULT 0",
        "ALTER TABLE package ADD CONSTRAINT c CHECK (seq > 1) NOT VALID",
        "ALTER TABLE package VALIDATE CONSTRAINT c",
        "ALTER TABLE package ADD CONSTRAINT c UNIQUE USING INDEX i",
        "INSERT INTO sweep_cursor VALUES ('UPDATE; DROP TABLE draw', '-infinity')",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ UPDATE draw SET open = NULL; $$",
        "GRANT SELECT ON t TO keypool_service",
    ] {
        assert_eq!(lint(good), Vec::<String>::new(), "{good}");
    }
}
