//! Migrations that would keep Reserves waiting, or that the release before could not serve on, are
//! refused here.

mod statements;

use std::{fs, path::Path};

use statements::statements;

/// Migrations up to this one made the schema before anybody served on it.
const FIRST: i64 = 2;

/// What is wrong in a migration and yet was right to do when it was made: by its name, and by the
/// beginning of the statement.
const ALLOWED: [(&str, &str); 4] = [
    // One constraint takes the place of others, which nothing serves by name.
    ("0003_checks.sql", "EXECUTE FORMAT('', OLD.OF, OLD.NAME)"),
    // What no release has used.
    ("0005_least_privilege.sql", "REVOKE DELETE ON POOL, POOL_SUITE"),
    // Rights on the schema, whose name is not known here.
    ("0005_least_privilege.sql", "EXECUTE FORMAT('', CURRENT_SCHEMA())"),
    ("0005_least_privilege.sql", "EXECUTE FORMAT('', CURRENT_SCHEMA())"),
];

/// The word after `words` in a statement.
fn after<'a>(statement: &'a str, words: &str) -> Option<&'a str> {
    let (_, rest) = statement.split_once(words)?;
    let rest = rest.trim_start().trim_start_matches("ONLY ").trim_start_matches("IF NOT EXISTS ");
    rest.split([' ', '(']).next().filter(|word| !word.is_empty())
}

/// What a statement with CREATE makes.
fn made(statement: &str) -> &str {
    let Some(mut rest) = statement.strip_prefix("CREATE ") else { return "" };
    for word in ["OR REPLACE ", "CONSTRAINT ", "EVENT "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.split(' ').next().unwrap_or_default()
}

/// What a REVOKE takes a right on.
fn revoked(statement: &str) -> Vec<&str> {
    let between = statement.split_once(" ON ").and_then(|(_, rest)| rest.split_once(" FROM "));
    let Some((names, _)) = between else { return vec![statement] };
    let kinds = ["FUNCTION ", "TABLE "];
    let names = kinds.iter().find_map(|kind| names.strip_prefix(kind)).unwrap_or(names);
    // The types of a function's arguments have commas too: it is better named without.
    names.split(", ").map(|name| name.split('(').next().unwrap_or(name)).collect()
}

/// Whether it updates or deletes rows, in whatever part of it.
fn changes_rows(statement: &str) -> bool {
    let words: Vec<&str> = statement.split([' ', '(']).filter(|word| !word.is_empty()).collect();
    let verb = words.first().copied().unwrap_or_default();
    // CREATE TRIGGER and GRANT name the verbs and do nothing of the kind.
    if !["WITH", "UPDATE", "DELETE", "MERGE", "INSERT", "FOR", "IF", "SELECT"].contains(&verb) {
        return false;
    }
    verb == "MERGE"
        || words.windows(2).any(|pair| matches!(pair, ["DELETE", "FROM"]))
        || words.iter().enumerate().any(|(place, word)| {
            let before = place.checked_sub(1).and_then(|before| words.get(before));
            // SELECT ... FOR [NO KEY] UPDATE locks rows only; ON CONFLICT DO UPDATE has few.
            *word == "UPDATE" && !matches!(before, Some(&("FOR" | "KEY" | "DO")))
        })
}

/// What is wrong with a migration.
fn lint(sql: &str) -> Vec<String> {
    let statements = statements(sql);
    let new: Vec<&str> = statements.iter().filter_map(|s| after(s, "CREATE TABLE ")).collect();
    let is_new = |table: Option<&str>| table.is_some_and(|table| new.contains(&table));
    let functions: Vec<&str> =
        statements.iter().filter_map(|s| after(s, "CREATE FUNCTION ")).collect();
    let is_own = |name: &str| new.contains(&name) || functions.contains(&name);
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
        for verb in ["TRUNCATE", "LOCK ", "CLUSTER", "VACUUM", "REINDEX"] {
            if s.starts_with(verb) {
                say("not beside a release that serves", s);
            }
        }
        if s.starts_with("DROP ") && !s.starts_with("DROP INDEX ") {
            say("the release before needs it", s);
        }
        if s.starts_with("REVOKE ") && !revoked(s).iter().all(|name| is_own(name)) {
            say("the release before may need the right", s);
        }
        if made(s) == "TRIGGER" {
            say("a trigger costs each statement", s);
        }
        if s.starts_with("EXECUTE ") || s.starts_with("DO ''") {
            say("what is put together as it runs, or stands in quotes, cannot be read here", s);
        }
        let acts = !["CREATE ", "GRANT ", "REVOKE ", "ALTER ", "COMMENT "]
            .iter()
            .any(|verb| s.starts_with(verb));
        if acts && functions.iter().any(|function| has(&format!("{function}("))) {
            say("what its own function does is not read here", s);
        }
        if changes_rows(s) {
            say("rows change in bounded batches, by the sweeper", s);
        }
        if s.starts_with("ALTER TYPE") {
            say("the release before knows the type as it was", s);
        }
        if !s.starts_with("ALTER TABLE") || is_new(after(s, "ALTER TABLE ")) {
            continue;
        }
        let table = after(s, "ALTER TABLE ");
        let locks = |other: &&String| {
            other.starts_with("ALTER TABLE")
                && after(other, "ALTER TABLE ") == table
                && (!other.contains(" VALIDATE CONSTRAINT ") || other.contains(" ADD "))
        };
        if has(" VALIDATE CONSTRAINT ") && statements.iter().any(|other| locks(&other)) {
            say("reads the whole table while another statement of the file has it locked", s);
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
    let (mut checked, mut used) = (0, vec![false; ALLOWED.len()]);
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let version: i64 = name.split('_').next().unwrap().parse().unwrap();
        if version <= FIRST {
            continue;
        }
        let mut wrong = lint(&fs::read_to_string(&file).unwrap());
        for (place, (of, allowed)) in ALLOWED.iter().enumerate().filter(|(_, it)| it.0 == name) {
            let found = wrong.iter().position(|it| it.contains(&format!(": {allowed}")));
            used[place] = found.map(|found| wrong.remove(found)).is_some();
            assert!(used[place], "{of} has no {allowed}");
        }
        assert_eq!(wrong, Vec::<String>::new(), "{name}");
        checked += 1;
    }
    assert!(checked > 0, "no migrations were found");
    assert!(used.iter().all(|used| *used), "allowed of files that there are not");
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
        "ALTER TABLE package ADD CONSTRAINT c CHECK (seq > 1) NOT VALID;
         ALTER TABLE package VALIDATE CONSTRAINT c",
        "ALTER TABLE package ADD CONSTRAINT c CHECK (seq > 1) NOT VALID, VALIDATE CONSTRAINT c",
        "ALTER TABLE package ADD COLUMN a int; ALTER TABLE package VALIDATE CONSTRAINT c",
        "DO $$ BEGIN EXECUTE format('ALTER TABLE %I ADD UNIQUE (holder)', 'package'); END $$",
        "DO $$ BEGIN EXECUTE 'DROP TABLE draw'; END $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$
         BEGIN IF true THEN EXECUTE 'DROP TABLE draw'; END IF; END $f$; SELECT f()",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $f$ UPDATE draw SET open = NULL $f$;
         SELECT f()",
        "DO 'BEGIN DROP TABLE draw; END'",
        "DO $do$ BEGIN UPDATE draw SET open = NULL; END $do$",
        "DO LANGUAGE plpgsql $x1$ BEGIN DROP TABLE draw; END $x1$",
        "DO $$ BEGIN IF true THEN DROP TABLE draw; END IF; END $$",
        "DO $$ BEGIN IF true THEN NULL; ELSE DELETE FROM draw; END IF; END $$",
        "DO $$ BEGIN FOR i IN 1..9 LOOP UPDATE draw SET open = NULL; END LOOP; END $$",
        "WITH old AS (SELECT pool_id FROM pool) UPDATE draw SET open = NULL FROM old",
        "WITH gone AS (DELETE FROM draw RETURNING *) SELECT count(*) FROM gone",
        "INSERT INTO t WITH gone AS (DELETE FROM draw RETURNING *) SELECT * FROM gone",
        "MERGE INTO draw USING pool ON true WHEN MATCHED THEN DELETE",
        "DROP FUNCTION is_possible_package",
        "DROP VIEW v",
        "REVOKE INSERT ON package FROM keypool_service",
        "REVOKE keypool_service FROM keypool_serve",
        "CREATE TABLE t (a int); REVOKE ALL ON t, package FROM PUBLIC",
        "CREATE TRIGGER t AFTER UPDATE ON package EXECUTE FUNCTION f()",
        "CREATE OR REPLACE TRIGGER t AFTER INSERT ON package EXECUTE FUNCTION f()",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON package EXECUTE FUNCTION f()",
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
        "GRANT UPDATE ON t TO keypool_service; GRANT EXECUTE ON FUNCTION f TO keypool_service",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NEW; END $f$",
        "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
         REVOKE ALL ON FUNCTION f FROM PUBLIC",
        "CREATE TABLE t (a int); REVOKE ALL ON t FROM PUBLIC",
        "WITH held AS (SELECT a FROM t FOR NO KEY UPDATE) SELECT count(*) FROM held",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
        "DO $do$ BEGIN IF true THEN PERFORM 1; END IF; END $do$",
        "ALTER TABLE package VALIDATE CONSTRAINT c; ALTER TABLE draw ADD COLUMN a int",
    ] {
        assert_eq!(lint(good), Vec::<String>::new(), "{good}");
    }
}
