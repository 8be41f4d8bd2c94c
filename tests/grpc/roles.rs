//! The database role that a server works as: what it may do, nobody can undo who takes the server
//! over, so a server that may do too much does not start.

use keypool_testing::{
    login::{Login, run},
    server::ConfigFile,
};

use super::*;

const SERVING: &str = "IN ROLE keypool_service";

/// Roles that may log in, with what they were made with, what they were given, and what is wrong
/// with that. `{}` is the role.
const UNFIT: [(&str, &str, &str); 17] = [
    ("SUPERUSER", "", "is a superuser"),
    ("IN ROLE keypool_service SUPERUSER", "", "is a superuser"),
    ("IN ROLE keypool_service CREATEROLE", "", "may create roles"),
    ("IN ROLE keypool_service REPLICATION", "", "may read the whole server by replication"),
    (SERVING, "GRANT pg_write_server_files TO {}", "is a member of pg_write_server_files"),
    (SERVING, "GRANT pg_write_all_data TO {}", "may change what is in the event log"),
    (SERVING, "GRANT UPDATE ON event TO {}", "may change what is in the event log"),
    (SERVING, "GRANT UPDATE (group_id) ON event TO {}", "may change what is in the event log"),
    (SERVING, "GRANT DELETE ON event_default TO {}", "may change what is in the event log"),
    (SERVING, "GRANT TRUNCATE ON event TO {}", "may change what is in the event log"),
    (SERVING, "GRANT UPDATE ON service_secret TO {}", "may change the secret of reservation ids"),
    (
        SERVING,
        "GRANT UPDATE (secret) ON service_secret TO {}",
        "may change the secret of reservation ids",
    ),
    (SERVING, "GRANT CREATE ON SCHEMA public TO {}", "may create tables in the schema public"),
    (SERVING, "ALTER TABLE event OWNER TO {}", "owns the schema, or tables or functions in it"),
    (
        SERVING,
        "ALTER FUNCTION drop_event_partitions OWNER TO {}",
        "owns the schema, or tables or functions in it",
    ),
    ("", "", "was not granted keypool_service"),
    ("", "GRANT INSERT ON event TO {}", "was not granted keypool_service"),
];

/// What `keypool serve` and `keypool check` say of a role.
async fn verdicts(url: &str) -> [String; 2] {
    let config = ConfigFile::new(url, &options().text("log.filter", "error"));
    let (serve, check) = tokio::join!(config.run("serve"), config.run("check"));
    assert_eq!((serve.status.code(), check.status.code()), (Some(1), Some(1)), "{serve:?}");
    [serve.stderr, check.stdout].map(|told| String::from_utf8(told).unwrap())
}

#[track_caller]
fn assert_told(verdicts: &[String; 2], fault: &str, case: &str) {
    let [serve, check] = verdicts;
    for (told, start) in [(serve, "keypool: "), (check, "database: ")] {
        let start = format!("{start}the role of the database's URL ");
        assert!(told.starts_with(&start) && told.contains(fault), "{case}: {told}");
        assert!(told.contains("docs/database-roles.md"), "{case}: {told}");
        assert_eq!(told.lines().count(), 1, "{case}: {told}");
        assert!(!told.contains("secret@"), "{case}: {told}");
    }
}

#[tokio::test]
async fn a_server_that_may_do_too_much_or_too_little_does_not_start() {
    for (made, given, fault) in UNFIT {
        let database = database().await;
        let login = Login::new(&database, made).await;
        run(&database.pool, &given.replace("{}", &login.name)).await;
        let case = format!("{made} {given}");
        assert_told(&verdicts(&login.url()).await, fault, &case);
        run(&database.pool, &format!("REASSIGN OWNED BY {} TO CURRENT_USER", login.name)).await;
        login.end(&database).await;
    }
}

/// What a role may become with SET ROLE counts, though it does not inherit it.
#[tokio::test]
async fn what_a_role_may_become_counts() {
    let database = database().await;
    let [writer, creator, owner] = [
        Login::new(&database, "").await,
        Login::new(&database, "CREATEROLE").await,
        Login::new(&database, "SUPERUSER").await,
    ];
    run(&database.pool, &format!("GRANT DELETE ON event TO {}", writer.name)).await;
    for (other, fault) in [
        (&writer, "may change what is in the event log".to_owned()),
        (&creator, format!("may become {}, which may create roles", creator.name)),
        (&owner, format!("may become the superuser {}", owner.name)),
    ] {
        let made = format!("NOINHERIT IN ROLE keypool_service, {}", other.name);
        let login = Login::new(&database, &made).await;
        // Without this, what serving takes would be missing too.
        run(&database.pool, &format!("ALTER ROLE {} INHERIT", login.name)).await;
        assert_told(&verdicts(&login.url()).await, &fault, &made);
        login.end(&database).await;
    }
    for login in [writer, creator, owner] {
        login.end(&database).await;
    }
}

/// The two roles of an installation: one owns the tables and migrates, the other serves. Neither
/// is a superuser.
#[tokio::test]
async fn one_role_migrates_and_another_serves() {
    let database = database().await; // the role keypool_service is there
    let [owner, server] = [Login::new(&database, "").await, Login::new(&database, SERVING).await];
    let name = &owner.name;
    run(&database.pool, &format!("CREATE DATABASE {name} OWNER {name}")).await;
    let url = |login: &Login| {
        use sqlx::ConnectOptions as _;
        login.options.clone().database(name).to_url_lossy().to_string()
    };
    let quiet = options().text("log.filter", "error");
    let migrate = ConfigFile::new(&url(&owner), &quiet).run("migrate").await;
    assert!(migrate.status.success(), "{migrate:?}");

    assert_told(&verdicts(&url(&owner)).await, "owns the database", "the owner");
    let check = ConfigFile::new(&url(&server), &quiet).run("check").await;
    assert!(check.status.success(), "{check:?}");
    let serving = Server::on(&url(&server), &options()).await;
    let bob = publish_some(&serving, "bob", 2).await;
    reserve_one(&serving.client("alice", "phone").await, &one_of("bob")).await;
    assert_eq!(counts(&bob).await.reserved, 1);
    serving.kill().await;
    run(&database.pool, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    for login in [owner, server] {
        login.end(&database).await;
    }
}
