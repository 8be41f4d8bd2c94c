//! The log's partitions are made ahead and dropped by retention.

use keypool_service::{domain::clock::Clock as _, pool::SweepPolicy};
use keypool_testing::contract::{Device, Ground, PATIENCE, adder};
use time::{Date, Duration, OffsetDateTime};
use tokio_util::sync::CancellationToken;

async fn execute(ground: &Ground, statement: &str) {
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    sqlx::query(statement).execute(&ground.database.pool).await.unwrap();
}

fn name(day: Date) -> String {
    format!("event_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day())
}

/// The database's own day: what is dropped depends on it.
async fn today(ground: &Ground) -> Date {
    let now: OffsetDateTime =
        sqlx::query_scalar("SELECT now()").fetch_one(&ground.database.pool).await.unwrap();
    now.date()
}

async fn partitions(ground: &Ground) -> Vec<String> {
    sqlx::query_scalar("SELECT relid::text FROM pg_partition_tree('event') WHERE level = 1")
        .fetch_all(&ground.database.pool)
        .await
        .unwrap()
}

/// Makes partitions of days as they were made then.
async fn made_earlier(ground: &Ground, days: impl IntoIterator<Item = Date>) {
    for day in days {
        sqlx::query("SELECT make_event_partitions($1, 0)")
            .bind(day)
            .execute(&ground.database.pool)
            .await
            .unwrap();
    }
}

/// Where the events of a kind are.
async fn places(ground: &Ground, kind: &str) -> Vec<String> {
    let places = "SELECT DISTINCT tableoid::regclass::text FROM event WHERE kind = $1 ORDER BY 1";
    sqlx::query_scalar(places).bind(kind).fetch_all(&ground.database.pool).await.unwrap()
}

#[tokio::test]
async fn they_are_made_ahead_and_events_land_in_the_right_one() {
    let ground = Ground::unfair().await;
    let today = ground.clock.now().date();
    ground.a.tend_log(&SweepPolicy::default()).await.unwrap();
    let made = partitions(&ground).await;
    for ahead in 0..=7 {
        assert!(made.contains(&name(today + Duration::days(ahead))), "{ahead} days ahead");
    }
    assert!(!made.contains(&name(today + Duration::days(8))));
    // Again, and nothing more.
    ground.b.tend_log(&SweepPolicy::default()).await.unwrap();
    assert_eq!(partitions(&ground).await, made);

    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 3).await;
    assert_eq!(places(&ground, "uploaded").await, [name(today)]);
    // The last microsecond of the day, and the first of the next one.
    let midnight = (today + Duration::days(1)).midnight().assume_utc();
    ground.pass(midnight - ground.clock.now() - Duration::MICROSECOND);
    ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert_eq!(places(&ground, "reserved").await, [name(today)]);
    ground.pass(Duration::MICROSECOND);
    ground.reserve(&adder(1), &bob.key).await.unwrap();
    let both = [name(today), name(today + Duration::days(1))];
    assert_eq!(places(&ground, "reserved").await, both);
}

#[tokio::test]
async fn old_ones_are_dropped_and_a_week_is_kept_whatever_is_asked() {
    let ground = Ground::unfair().await;
    let today = today(&ground).await;
    let back = |days| today - Duration::days(days);
    made_earlier(&ground, (1..=40).map(back)).await;
    let keep = |days| SweepPolicy { event_retention_days: days, ..SweepPolicy::default() };
    ground.a.tend_log(&keep(30)).await.unwrap();
    let left = partitions(&ground).await;
    assert!(left.contains(&name(back(30))) && !left.contains(&name(back(31))));
    for days in [6, 0] {
        ground.b.tend_log(&keep(days)).await.unwrap();
        let left = partitions(&ground).await;
        assert!(left.contains(&name(back(7))) && !left.contains(&name(back(8))), "{days}");
    }
    // Nor by a clock that is wrong: the database's own counts too.
    sqlx::query("SELECT drop_event_partitions($1, 7)")
        .bind(today + Duration::days(1000))
        .execute(&ground.database.pool)
        .await
        .unwrap();
    assert!(partitions(&ground).await.contains(&name(back(7))));
    assert!(partitions(&ground).await.contains(&"event_default".to_owned()));
}

/// A day whose events the default partition holds already stays there, and goes with retention.
#[tokio::test]
async fn the_default_partition_takes_what_has_none() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 2).await;
    assert_eq!(places(&ground, "uploaded").await, ["event_default"]);
    ground.a.tend_log(&SweepPolicy::default()).await.unwrap();
    let today = ground.clock.now().date();
    let made = partitions(&ground).await;
    assert!(!made.contains(&name(today)));
    assert!(made.contains(&name(today + Duration::days(1))));
    ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert_eq!(places(&ground, "reserved").await, ["event_default"]);
    ground.pass(Duration::DAY);
    ground.reserve(&adder(1), &bob.key).await.unwrap();
    let both = [name(today + Duration::days(1)), "event_default".to_owned()];
    assert_eq!(places(&ground, "reserved").await, both);

    // What lies in it leaves it when it is as old as a partition that is dropped.
    let aged = "INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind,
                                   key_package_ref)
                SELECT bucket, pool_id, date_trunc('day', now(), 'UTC') - days * interval '1 day',
                       1, 1, 0, 'expired', key_package_ref
                FROM (SELECT * FROM event LIMIT 1) e, generate_series(6, 9) AS days";
    execute(&ground, aged).await;
    assert_eq!(places(&ground, "expired").await, ["event_default"]);
    let week = SweepPolicy { event_retention_days: 7, ..SweepPolicy::default() };
    ground.a.tend_log(&week).await.unwrap();
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM event WHERE kind = 'expired'")
        .fetch_one(&ground.database.pool)
        .await
        .unwrap();
    assert_eq!(kept, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_at_once_do_not_meet() {
    let ground = Ground::unfair().await;
    for _ in 0..5 {
        ground.pass(Duration::days(3));
        let today = today(&ground).await;
        made_earlier(&ground, (8..12).map(|days| today - Duration::days(days))).await;
        let policy = SweepPolicy { event_retention_days: 7, ..SweepPolicy::default() };
        let tends: Vec<_> = (0..8)
            .map(|n| {
                let pool = if n % 2 == 0 { ground.a.clone() } else { ground.b.clone() };
                let policy = policy.clone();
                tokio::spawn(async move { pool.tend_log(&policy).await })
            })
            .collect();
        for tend in tends {
            tend.await.unwrap().unwrap();
        }
        let left = partitions(&ground).await;
        for days in 8..12 {
            assert!(!left.contains(&name(today - Duration::days(days))));
        }
        assert!(left.contains(&name(ground.clock.now().date() + Duration::days(7))));
    }
}

/// Someone who reads the log for a long time holds up its partitions and not the sweeps.
#[tokio::test]
async fn a_log_that_cannot_be_tended_does_not_stop_the_sweeper() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 1).await;
    let today = today(&ground).await;
    made_earlier(&ground, [today - Duration::days(100)]).await;
    let mut reading = ground.database.pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM event").execute(&mut *reading).await.unwrap();
    assert!(ground.a.tend_log(&SweepPolicy::default()).await.is_err());

    ground.reserve(&adder(0), &bob.key).await.unwrap();
    ground.pass(Duration::minutes(2));
    let stop = CancellationToken::new();
    let policy = SweepPolicy { interval: Duration::milliseconds(10), ..SweepPolicy::default() };
    let sweeper = tokio::spawn({
        let (pool, stop) = (ground.a.clone(), stop.clone());
        async move { pool.run_sweeper(policy, stop).await }
    });
    ground.until("SELECT count(*) >= $1 FROM event WHERE kind = 'lapsed'", 1).await;
    // And the sweeps after the attempt.
    ground.until("SELECT count(*) >= $1 FROM package WHERE returned = 'lapsed'", 1).await;
    ground.reserve(&adder(1), &bob.key).await.unwrap();
    ground.pass(Duration::minutes(2));
    ground.until("SELECT count(*) >= $1 FROM event WHERE kind = 'lapsed'", 2).await;
    reading.rollback().await.unwrap();
    stop.cancel();
    tokio::time::timeout(PATIENCE, sweeper).await.unwrap().unwrap();
}
