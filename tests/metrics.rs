//! Everything that `docs/metrics.md` names is measured, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt as _;
use keypool_client::{Client, Reserve, v1};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    grpc::auth::Scope,
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    proxy::Proxy,
    scrape::{Scrape, get, metrics_address, reaches},
    server::{Server, ServerOptions, until},
    tls::{Ca, TlsFolder},
    tokens::{authorized, expired_token, token, token_with},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";
const DOCUMENT: &str = include_str!("../docs/metrics.md");
const CERTIFICATE: &str = "keypool_tls_certificate_not_after_seconds";
const SERVICE: &str = "keypool.v1.KeyPackageService";

fn options() -> ServerOptions {
    ServerOptions::default()
        .text("metrics.sample_interval", "100ms")
        .text("sweeper.interval", "1s")
        .set("pool.low_watermark", 1)
}

fn packages(user: &str, count: usize) -> Vec<Vec<u8>> {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    (0..count).map(|_| Forge::new(SUITE, user).valid_around(now).build()).collect()
}

fn last_resort(user: &str) -> Vec<u8> {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    let forge = Forge::new(SUITE, user).valid_around(now).extension(0x000a, b"");
    forge.with(|forge| forge.capabilities.extensions.push(0x000a)).build()
}

/// The metrics of the document: name -> labels.
fn documented() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut found = BTreeMap::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, names, _kind, _unit, labels, ..] = cells[..] else { panic!("{line}") };
        let labels: BTreeSet<&str> = labels.split('`').skip(1).step_by(2).collect();
        for name in names.split(", ") {
            found.insert(name.trim_matches('`'), labels.clone());
        }
    }
    found
}

fn shown(scrape: &Scrape) -> BTreeMap<&str, BTreeSet<&str>> {
    let types = scrape.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let kinds: BTreeMap<&str, &str> = types.filter_map(|line| line.split_once(' ')).collect();
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in &scrape.samples {
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| sample.name.strip_suffix(suffix));
        let name = base.filter(|base| kinds.get(base) == Some(&"histogram"));
        let labels = found.entry(name.unwrap_or(&sample.name)).or_default();
        labels.extend(sample.labels.iter().map(|(key, _)| &**key).filter(|key| *key != "le"));
    }
    found
}

async fn reserve(client: &Client, user: &str) -> Option<v1::Reservation> {
    let request = Reserve::new(GROUP, SUITE).target_clients(user, ["phone"]);
    let answer = client.reserve(&request).await.ok()?;
    answer.results[0].reservation().cloned()
}

/// Does everything that is measured, once or a known number of times.
async fn provoke(server: &Server) {
    let bob = server.client("bob", "phone").await;
    let two = packages("bob", 2);
    let mut sent = two.clone();
    sent.extend([last_resort("bob"), b"no KeyPackage".to_vec()]);
    bob.upload(sent).await.unwrap();
    bob.upload(two[..1].to_vec()).await.unwrap();
    let mut watch = Box::pin(bob.watch_pool_status().await.unwrap());
    watch.next().await.unwrap().unwrap();
    reaches(server, "keypool_watch_streams", &[], 1.0).await;

    let alice = server.client("alice", "laptop").await;
    let first = reserve(&alice, "bob").await.unwrap();
    alice.release([&first.reservation_id]).await.unwrap();
    // Newcomers: who has drawn from a pool that is low gets the last resort only.
    let carol = server.client("carol", "laptop").await;
    let fresh = reserve(&carol, "bob").await.unwrap();
    carol.spend(GROUP, [&fresh.reservation_id]).await.unwrap();
    let dave = server.client("dave", "laptop").await;
    let returned = reserve(&dave, "bob").await.unwrap();
    assert_eq!(returned.key_package_ref, first.key_package_ref);
    assert!(reserve(&dave, "bob").await.unwrap().last_resort);
    assert!(reserve(&dave, "bob").await.is_none(), "more than its share");
    assert!(reserve(&dave, "nobody").await.is_none());
    reaches(server, "keypool_packages", &[("state", "reserved")], 1.0).await;
    bob.revoke(v1::RevokeKeyPackagesRequest { all: true, ..Default::default() }).await.unwrap();

    let eve = server.client("eve", "phone").await;
    eve.upload(packages("eve", 1)).await.unwrap();
    let short = Reserve::new(GROUP, SUITE).target("eve").ttl(Duration::from_secs(1));
    dave.reserve(&short).await.unwrap();
    reaches(server, "keypool_sweeper_rows_total", &[("work", "lapsed")], 1.0).await;

    let mut grpc = server.grpc().await;
    for bad in [expired_token("bob", "phone"), "no.token.at.all".into()] {
        grpc.get_pool_status(authorized(&bad, v1::GetPoolStatusRequest {})).await.unwrap_err();
    }
    grpc.get_pool_status(v1::GetPoolStatusRequest {}).await.unwrap_err();
    let scope = token_with("bob", "phone", &[Scope::Reserve]);
    grpc.get_pool_status(authorized(&scope, v1::GetPoolStatusRequest {})).await.unwrap_err();
    drop(watch);
    reaches(server, "keypool_watch_streams", &[], 0.0).await;
}

#[tokio::test]
async fn everything_that_is_documented_is_measured_and_nothing_else() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    provoke(&server).await;
    let scrape = Scrape::of(&server).await;

    let (mut documented, shown) = (documented(), shown(&scrape));
    assert!(documented.remove(CERTIFICATE).is_some(), "there with TLS only");
    let names = |of: &BTreeMap<&str, _>| of.keys().map(|&name| name.into()).collect();
    let [wanted, found]: [BTreeSet<String>; 2] = [names(&documented), names(&shown)];
    assert_eq!(found, wanted);
    assert_eq!(shown, documented, "each has the labels that are documented");
    for name in documented.keys() {
        let help = format!("# HELP {name} ");
        assert!(scrape.text.contains(&help), "{name} says what it means");
    }

    for (name, labels, value) in [
        ("keypool_packages_uploaded_total", &[("outcome", "stored")][..], 4.0),
        ("keypool_packages_uploaded_total", &[("outcome", "already_present")], 1.0),
        ("keypool_packages_uploaded_total", &[("outcome", "rejected")], 1.0),
        ("keypool_upload_rejections_total", &[("reason", "MALFORMED")], 1.0),
        ("keypool_packages_issued_total", &[("kind", "one_time")], 3.0),
        ("keypool_packages_issued_total", &[("kind", "returned")], 1.0),
        ("keypool_packages_issued_total", &[("kind", "last_resort")], 1.0),
        ("keypool_reserve_unavailable_total", &[("reason", "POOL_EXHAUSTED")], 1.0),
        ("keypool_reserve_unavailable_total", &[("reason", "QUOTA")], 1.0),
        ("keypool_packages_settled_total", &[("outcome", "spent")], 1.0),
        ("keypool_packages_settled_total", &[("outcome", "released")], 1.0),
        // The one that is reserved, and the last resort package.
        ("keypool_packages_revoked_total", &[], 2.0),
        ("keypool_token_failures_total", &[("kind", "missing")], 1.0),
        ("keypool_token_failures_total", &[("kind", "expired")], 1.0),
        ("keypool_token_failures_total", &[("kind", "malformed")], 1.0),
        ("keypool_rpc_errors_total", &[("reason", "TOKEN_EXPIRED")], 1.0),
        ("keypool_rpc_errors_total", &[("reason", "QUOTA")], 1.0),
        ("keypool_rpc_errors_total", &[("rpc_response_status_code", "PERMISSION_DENIED")], 1.0),
        ("keypool_database_up", &[], 1.0),
        ("keypool_token_keys", &[("source", "files")], 1.0),
    ] {
        assert_eq!(scrape.value(name, labels), Some(value), "{name} {labels:?}");
    }
    // Of bob's pool all is gone, in eve's is one, which is no more than its low watermark.
    for (health, pools) in [("healthy", 0.0), ("low", 1.0), ("exhausted", 1.0)] {
        reaches(&server, "keypool_pools", &[("health", health)], pools).await;
    }
    let reserve = format!("{SERVICE}/ReserveKeyPackages");
    let ok = [("rpc_method", &*reserve), ("rpc_response_status_code", "OK")];
    let calls = "rpc_server_call_duration_seconds_count";
    assert_eq!(scrape.value(calls, &ok), Some(5.0));
    let spent = [("statement", "spend_held")];
    assert_eq!(scrape.value("keypool_batch_size_sum", &spent), Some(1.0));
    assert_eq!(scrape.value("keypool_batch_wait_seconds_count", &spent), Some(1.0));
    for name in [
        "keypool_low_pool_notices_total",
        "keypool_watch_statuses_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "keypool_event_partition_days_ahead",
        "keypool_sample_timestamp_seconds",
    ] {
        assert!(scrape.value(name, &[]).unwrap() >= 1.0, "{name}");
    }
}

#[tokio::test]
async fn certificates_and_handshakes_are_measured() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let ca = Ca::new();
    let files = TlsFolder::of(&ca);
    let options = files.configure(options());
    let server = Server::start_with_tls(&database, &options, ca.trusted()).await;
    let mut garbage = TcpStream::connect(server.address()).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let handshake = [("cause", "handshake")];
    reaches(&server, "keypool_grpc_connections_refused_total", &handshake, 1.0).await;
    let ends = Scrape::of(&server).await.value(CERTIFICATE, &[]).unwrap();
    assert_eq!(ends, 67_090_118_400.0, "as rcgen makes them: until 4096");
}

#[tokio::test]
async fn a_sweeper_that_is_late_says_by_how_much() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = options().text("sweeper.interval", "1h");
    let server = Server::start(&database, &options).await;
    let swept = "UPDATE sweep_cursor SET swept = now() - interval '2 hours' WHERE name = 'lapsed'";
    let lag = async || Scrape::of(&server).await.value("keypool_sweeper_lag_seconds", &[]);
    // Again and again: the sweeper's first run may come in between. The cursor is left a minute
    // behind what was looked at.
    until(async || {
        sqlx::query(swept).execute(&database.pool).await.unwrap();
        lag().await.is_some_and(|lag| (7_100.0..7_200.0).contains(&lag))
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_for_its_number_is_counted_by_limit() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = options()
        .set("limits.rate_limits", true)
        .set("limits.target_burst", 1)
        .set("limits.target_per_minute", 1)
        .set("server.max_watches_per_client", 1);
    let server = Server::start(&database, &options).await;
    let alice = server.client("alice", "laptop").await;
    for _ in 0..3 {
        assert!(reserve(&alice, "nobody").await.is_none());
    }
    let mut watch = Box::pin(alice.watch_pool_status().await.unwrap());
    watch.next().await.unwrap().unwrap();
    alice.watch_pool_status().await.err().expect("one stream too many");
    let scrape = Scrape::of(&server).await;
    let limited = |limit| scrape.value("keypool_rate_limited_total", &[("limit", limit)]);
    let counts = ["caller", "caller_target", "owner", "requests", "streams"].map(limited);
    assert_eq!(counts, [0.0, 2.0, 0.0, 0.0, 1.0].map(Some));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_counted() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = options().set("server.max_connections", 1);
    let server = Server::start(&database, &options).await;
    reaches(&server, "keypool_grpc_connections", &[], 0.0).await;
    let _one = TcpStream::connect(server.address()).await.unwrap();
    reaches(&server, "keypool_grpc_connections", &[], 1.0).await;
    let _another = TcpStream::connect(server.address()).await.unwrap();
    let full = [("cause", "full")];
    reaches(&server, "keypool_grpc_connections_refused_total", &full, 1.0).await;
}

#[tokio::test]
async fn no_label_names_a_user() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    let user = "a-user-whose-name-is-a-secret";
    let client = server.client(user, "phone").await;
    client.upload(packages(user, 2)).await.unwrap();
    let reserved = reserve(&server.client("alice", "phone").await, user).await.unwrap();
    let mut grpc = server.grpc().await;
    let mine = token(user, "phone");
    let request = v1::ReleaseReservationsRequest { reservation_ids: vec![user.into()] };
    grpc.release_reservations(authorized(&mine, request)).await.unwrap_err();
    let text = Scrape::of(&server).await.text;
    for secret in [user, &reserved.reservation_id, &mine, "phone"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_call_that_is_turned_away_or_given_up_is_counted() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = options().set("server.max_concurrent_requests", 1);
    let server = Server::start(&database, &options).await;
    let bob = server.client("bob", "phone").await;
    bob.upload(packages("bob", 1)).await.unwrap();
    let lock = database.lock_table("pool").await;
    let waiting = tokio::spawn({
        let bob = server.client("bob", "phone").await;
        async move { bob.pool_status().await }
    });
    database.waiting(1).await;
    bob.pool_status().await.unwrap_err();
    reaches(&server, "keypool_shed_total", &[("cause", "places")], 1.0).await;
    waiting.abort();
    let cancelled = [("rpc_response_status_code", "CANCELLED")];
    reaches(&server, "keypool_rpc_errors_total", &cancelled, 1.0).await;
    lock.release().await;
    reaches(&server, "rpc_server_active_requests", &[], 0.0).await;
}

/// Anybody may call it without a token: it must not look like a fault of keypool.
#[tokio::test]
async fn a_method_that_there_is_not_is_told_from_a_fault() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetPoolStatusRequest, v1::PoolStatus>::default();
    let request = tonic::Request::new(v1::GetPoolStatusRequest {});
    let nowhere = "/keypool.v2.Nothing/Nothing".parse().unwrap();
    let refused = grpc.unary(request, nowhere, codec).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    let scrape = Scrape::of(&server).await;
    let errors = |reason| {
        let labels = [("rpc_method", "_OTHER"), ("reason", reason)];
        scrape.value("keypool_rpc_errors_total", &labels)
    };
    assert_eq!((errors("UNIMPLEMENTED"), errors("UNEXPLAINED")), (Some(1.0), None));
}

/// Its code is in the trailers: by then the call has long been counted as one that was opened.
#[tokio::test]
async fn a_stream_that_fails_is_counted_with_its_reason() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = options().text("database.statement_timeout", "100ms");
    let server = Server::start(&database, &options).await;
    let bob = server.client("bob", "phone").await;
    let lock = database.lock_table("pool").await;
    let mut failing = Box::pin(bob.watch_pool_status().await.unwrap());
    let failed = failing.next().await.unwrap().unwrap_err();
    lock.release().await;
    // One that is read and dropped is no failure.
    let mut watch = Box::pin(bob.watch_pool_status().await.unwrap());
    watch.next().await.unwrap().unwrap();
    drop((failing, watch));
    reaches(&server, "keypool_watch_streams", &[], 0.0).await;

    let method = format!("{SERVICE}/WatchPoolStatus");
    let of = |label, value| [("rpc_method", &*method), (label, value)];
    let reason = failed.reason().unwrap().wire_name();
    let scrape = Scrape::of(&server).await;
    let errors = "keypool_rpc_errors_total";
    assert_eq!(scrape.value(errors, &of("reason", reason)), Some(1.0), "{reason}");
    assert_eq!(scrape.value(errors, &[("rpc_method", &method)]), Some(1.0));
    let opened = "rpc_server_call_duration_seconds_count";
    assert_eq!(scrape.value(opened, &of("rpc_response_status_code", "OK")), Some(2.0));
    assert_eq!(scrape.value(opened, &[("rpc_method", &method)]), Some(2.0));
}

/// What waits in vain because the database is gone is told so, and was not turned away for its
/// number.
#[tokio::test]
async fn a_call_that_waits_for_a_database_that_is_gone_is_not_counted_as_shed() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let proxy = Proxy::to(database.target()).await;
    let options = options()
        .set("limits.adder_places", 1)
        .text("database.statement_timeout", "1m")
        .text("server.request_timeout", "1m")
        .text("server.drain_timeout", "2m");
    let server = Server::on(&database.url_through(&proxy, "password"), &options).await;
    let lock = database.lock_table("pool").await;
    let alice = server.client("alice", "laptop").await;
    let stuck = tokio::spawn(async move { reserve(&alice, "bob").await });
    database.waiting(1).await;
    proxy.silence();
    reaches(&server, "keypool_database_up", &[], 0.0).await;
    let carol = server.client("carol", "laptop").await;
    let refused = carol.reserve(&Reserve::new(GROUP, SUITE).target("bob")).await.unwrap_err();
    assert_eq!(refused.reason(), Some(v1::ErrorReason::StoreUnavailable), "{refused:?}");
    let shed = Scrape::of(&server).await.value("keypool_shed_total", &[]);
    assert_eq!(shed, Some(0.0));
    stuck.abort();
    proxy.open();
    lock.release().await;
}

#[tokio::test]
async fn the_port_for_metrics_serves_nothing_else() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    let address = metrics_address(&server).await;
    assert_eq!(get(address, "/healthz").await.1, "ok\n");
    let (head, _) = get(address, "/keypool.v1.KeyPackageService/GetPoolStatus").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert_ne!(address, server.address());
}
