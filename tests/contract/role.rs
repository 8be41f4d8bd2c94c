//! The role of the service does all that the service needs, and cannot change the log.

use std::sync::Arc;

use keypool_service::{
    domain::{
        clock::{Clock, SystemClock},
        key_package::UploadPolicy,
        policy::PoolPolicy,
    },
    pool::{EventRequest, KeyPool, Selection, SweepPolicy, UploadMode},
    store::{EventPools, MIGRATOR, Store, StoreOptions},
};
use keypool_testing::{
    contract::{Device, PATIENCE, adder, ask, group, replica, reserve, stored},
    database::TestDatabase,
    login::{Login, run},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgPoolOptions};

async fn service(database: &TestDatabase) -> Login {
    Login::new(database, "IN ROLE keypool_service").await
}

fn device() -> Device {
    let mut device = Device::new("bob", "phone");
    let now = u64::try_from(SystemClock.now().unix_timestamp()).unwrap();
    device.forge = device.forge.valid_around(now);
    device
}

async fn events(pool: &KeyPool) -> usize {
    let request = EventRequest {
        pools: EventPools::All,
        from: None,
        before: None,
        key_package_ref: None,
        after: None,
        page_size: 100,
    };
    pool.events(request).await.unwrap().events.len()
}

#[tokio::test]
async fn the_whole_service_works_under_it() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let login = service(&database).await;
    let url = login.url();
    // Burning and a time to live of nothing reach every statement of the sweeper.
    let policy = PoolPolicy {
        lapse: keypool_service::domain::policy::LapsePolicy::Burn,
        ..PoolPolicy::default()
    };
    let pool = replica(&url, Arc::new(SystemClock), policy, UploadPolicy::default()).await;
    let who: String = {
        let mut connection = PgConnection::connect_with(&login.options).await.unwrap();
        sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(who, login.name);

    let mut bob = device();
    let mut packages = bob.packages(4);
    packages.push(bob.last_resort());
    pool.upload(&bob.key, packages, UploadMode::Add).await.unwrap().0.iter().for_each(|result| {
        stored(result);
    });
    let first = reserve(&pool, &adder(0), &ask(&bob.key)).await.unwrap();
    pool.spend(&adder(0), &[first.id], &group()).await.unwrap();
    let second = reserve(&pool, &adder(1), &ask(&bob.key)).await.unwrap();
    pool.release(&adder(1), &[second.id]).await.unwrap();
    let refused = pool.revoke(&bob.key, None, Selection::All).await.unwrap();
    assert_eq!((refused.available, refused.last_resort), (3, 1));
    let packages = vec![bob.package(), bob.last_resort()];
    pool.upload(&bob.key, packages, UploadMode::ReplaceOtherCredentials).await.unwrap();
    let lapsing = keypool_service::pool::ReserveRequest {
        ttl: Some(time::Duration::MICROSECOND),
        ..ask(&bob.key)
    };
    reserve(&pool, &adder(2), &lapsing).await.unwrap();
    let grant = reserve(&pool, &adder(3), &ask(&bob.key)).await.unwrap();
    assert!(grant.last_resort);
    pool.spend(&adder(3), &[grant.id], &group()).await.unwrap();
    let now = SweepPolicy {
        draw_retention: time::Duration::ZERO,
        tombstone_retention: time::Duration::ZERO,
        ..SweepPolicy::default()
    };
    assert_eq!(pool.sweep(&now).await.unwrap().lapsed, 1);
    pool.tend_log(&SweepPolicy::default()).await.unwrap();
    pool.status(&bob.key).await.unwrap();
    assert_eq!(events(&pool).await, 5 + 2 + 2 + 4 + 2 + 1 + 2 + 1);

    let store = pool.store();
    store.ping().await.unwrap();
    assert!(store.pending_migrations().await.unwrap().is_empty());
    store
        .tell(&[(bob.key.clone(), true)], keypool_service::domain::policy::LapsePolicy::Burn, 8)
        .await
        .unwrap();
    store.listen(std::time::Duration::from_secs(5)).await.unwrap();
    pool.store().close().await;
    login.end(&database).await;
}

#[tokio::test]
async fn it_cannot_change_the_log_or_the_schema() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let login = service(&database).await;
    run(&database.pool, "SELECT make_event_partitions('2000-01-01', 0)").await;
    let event = "(0, 1, '2000-01-01 12:00Z', 1, 1, 0, 'uploaded', '\\x00')";
    let columns = "bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref";
    let mut connection = PgConnection::connect_with(&login.options).await.unwrap();
    let append = format!("INSERT INTO event ({columns}) VALUES {event}");
    sqlx::raw_sql(AssertSqlSafe(append)).execute(&mut connection).await.unwrap();

    let tables: Vec<String> =
        sqlx::query_scalar("SELECT relid::text FROM pg_partition_tree('event')")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert!(tables.contains(&"event".to_owned()) && tables.contains(&"event_20000101".to_owned()));
    assert!(tables.contains(&"event_default".to_owned()));
    let mut refused: Vec<String> = Vec::new();
    for table in tables {
        // Warns at most; what it grants is tried below.
        let grant = format!("GRANT ALL ON {table} TO keypool_service");
        let _ = sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut connection).await;
        refused.extend([
            format!("UPDATE {table} SET kind = 'spent'"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {table} ADD COLUMN more text"),
            format!("ALTER TABLE {table} OWNER TO {}", login.name),
            format!("CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION x()"),
            format!("CREATE RULE r AS ON INSERT TO {table} DO INSTEAD NOTHING"),
        ]);
    }
    refused.extend([
        format!(
            "INSERT INTO event ({columns}) VALUES {event}
             ON CONFLICT (bucket, pool_id, at, cipher_suite, seq, generation, kind)
             DO UPDATE SET kind = 'spent'"
        ),
        "ALTER TABLE event DETACH PARTITION event_20000101".to_owned(),
        "UPDATE service_secret SET secret = secret".to_owned(),
        "DELETE FROM service_secret".to_owned(),
        "TRUNCATE package".to_owned(),
        "DROP TABLE package".to_owned(),
        "ALTER TABLE package DISABLE TRIGGER ALL".to_owned(),
        "DELETE FROM _sqlx_migrations".to_owned(),
        "CREATE TABLE public.mine (id int)".to_owned(),
        "CREATE OR REPLACE FUNCTION drop_event_partitions(date, integer) RETURNS integer
         LANGUAGE sql AS 'SELECT 1'"
            .to_owned(),
        "SET ROLE postgres".to_owned(),
    ]);
    for statement in refused {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
        let code = done.as_ref().err().and_then(|e| e.as_database_error()?.code());
        // insufficient_privilege
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {done:?}");
    }
    let kept: i64 =
        sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&database.pool).await.unwrap();
    assert_eq!(kept, 1);
    connection.close().await.unwrap();
    login.end(&database).await;
}

/// What it may have done for it is bounded, too: the partitions of the last week stay, and no
/// table of its own stands for the log.
#[tokio::test]
async fn its_functions_are_not_led_astray() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let login = service(&database).await;
    let mut connection = PgConnection::connect_with(&login.options).await.unwrap();
    let partitions = || async {
        let count = "SELECT count(*) FROM pg_partition_tree('public.event')";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&database.pool).await.unwrap()
    };
    let before = partitions().await;
    sqlx::raw_sql(
        "CREATE TEMPORARY TABLE event (at timestamptz) PARTITION BY RANGE (at);
         CREATE TEMPORARY TABLE event_default PARTITION OF event DEFAULT",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let made: i32 = sqlx::query_scalar("SELECT make_event_partitions(current_date + 30, 2)")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!((made, partitions().await), (3, before + 3));
    let dropped: i32 = sqlx::query_scalar("SELECT drop_event_partitions('infinity', -1000)")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!((dropped, partitions().await), (0, before + 3));
    connection.close().await.unwrap();
    login.end(&database).await;
}

/// Others may call neither.
#[tokio::test]
async fn a_stranger_may_do_nothing() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let login = Login::new(&database, "").await;
    let mut connection = PgConnection::connect_with(&login.options).await.unwrap();
    for statement in [
        "SELECT make_event_partitions(current_date, 1)",
        "SELECT drop_event_partitions(current_date, 1)",
        "SELECT count(*) FROM event",
        "SELECT count(*) FROM package",
        "SELECT count(*) FROM service_secret",
    ] {
        let done = sqlx::raw_sql(statement).execute(&mut connection).await;
        let code = done.as_ref().err().and_then(|e| e.as_database_error()?.code());
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {done:?}");
    }
    connection.close().await.unwrap();
    login.end(&database).await;
}

/// Where a database's owner may not create roles, one who may has made the service's before.
#[tokio::test]
async fn an_owner_who_may_not_create_roles_can_migrate() {
    // Makes the role, as the first database of a server does.
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let owner = Login::new(&database, "").await;
    run(&database.pool, &format!("CREATE DATABASE {0} OWNER {0}", owner.name)).await;
    let theirs = owner.options.clone().database(&owner.name);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(theirs.clone()).await.unwrap();
    MIGRATOR.run(&pool).await.unwrap();
    pool.close().await;
    let url = sqlx::ConnectOptions::to_url_lossy(&theirs).to_string();
    let options = StoreOptions {
        url,
        max_connections: 1,
        acquire_timeout: PATIENCE,
        statement_timeout: PATIENCE,
    };
    let store = Store::new(&options, Arc::new(SystemClock)).unwrap();
    assert!(store.pending_migrations().await.unwrap().is_empty());
    store.close().await;
    run(&database.pool, &format!("DROP DATABASE {} WITH (FORCE)", owner.name)).await;
    owner.end(&database).await;
}

/// What the service's role was granted on each table.
const GRANTED: [(&str, &str); 11] = [
    ("pool", "INSERT SELECT UPDATE"),
    ("pool_suite", "INSERT SELECT UPDATE"),
    ("package", "DELETE INSERT SELECT UPDATE"),
    ("tombstone", "DELETE INSERT SELECT UPDATE"),
    ("published", "DELETE INSERT SELECT UPDATE"),
    ("last_resort", "DELETE INSERT SELECT UPDATE"),
    ("last_resort_grant", "DELETE INSERT SELECT UPDATE"),
    ("draw", "DELETE INSERT SELECT UPDATE"),
    ("event", "INSERT SELECT"),
    ("service_secret", "INSERT SELECT"),
    ("sweep_cursor", "SELECT UPDATE"),
];

/// Nobody was given more than that, and the world nothing.
#[tokio::test]
async fn grants_are_the_least_that_serving_takes() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let granted: Vec<(String, String)> = sqlx::query_as(
        "SELECT relname::text, string_agg(privilege_type, ' ' ORDER BY privilege_type COLLATE \"C\")
         FROM pg_class, aclexplode(relacl)
         WHERE relnamespace = 'public'::regnamespace
           AND grantee = 'keypool_service'::regrole
         GROUP BY 1",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for (table, expected) in GRANTED {
        let found = granted.iter().find(|(name, _)| name == table);
        assert_eq!(found.map(|(_, privileges)| &**privileges), Some(expected), "{table}");
    }
    for (table, privileges) in granted {
        for privilege in privileges.split(' ') {
            let is_of_rows = ["DELETE", "INSERT", "SELECT", "UPDATE"].contains(&privilege);
            assert!(is_of_rows, "{table}: {privilege}");
        }
        assert!(!table.starts_with("event_"), "a partition is reached by its table: {table}");
    }
    // Grantee 0 is everybody; without a list, functions are everybody's to call.
    let strangers: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class, aclexplode(relacl)
         WHERE relnamespace = 'public'::regnamespace AND grantee = 0
         UNION ALL
         SELECT proname::text FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace
           AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0))
         UNION ALL
         SELECT nspname::text || ': CREATE' FROM pg_namespace, aclexplode(nspacl)
         WHERE nspname = 'public' AND grantee = 0 AND privilege_type = 'CREATE'",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// In a database that comes from an old Postgres, too.
#[tokio::test]
async fn migrating_closes_a_schema_that_was_open_to_all() {
    let database = TestDatabase::create().await;
    run(&database.pool, "GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    MIGRATOR.run(&database.pool).await.unwrap();
    let open: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_namespace, aclexplode(nspacl)
                        WHERE nspname = 'public' AND grantee = 0 AND privilege_type = 'CREATE')",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert!(!open);
}
