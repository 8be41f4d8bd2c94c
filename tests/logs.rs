//! One line for each call that fails, and a level that changes while the server runs.

use std::{fs, os::unix::fs::symlink};

use keypool_client::{Reserve, v1};
use keypool_service::store::MIGRATOR;
use keypool_testing::{
    database::TestDatabase,
    raw::RawConnection,
    server::{Server, ServerOptions, until},
    tokens::{authorized, token},
};

const GROUP: &[u8] = b"the group of the test";
const SUITE: u16 = 1;

/// The lines about a call.
fn about(server: &Server, id: &str) -> Vec<String> {
    server.log().lines().filter(|line| line.contains(id)).map(ToOwned::to_owned).collect()
}

/// One line, with the id that the answer carries, however the call failed.
#[tokio::test]
async fn a_failed_call_is_one_line_with_its_request_id() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let mut grpc = server.grpc().await;
    let alice = token("alice", "laptop");
    let to_nobody = Reserve::new(GROUP, SUITE).target_clients("nobody", ["phone"]);
    let release = v1::ReleaseReservationsRequest::default();
    for (status, reason) in [
        (grpc.get_pool_status(v1::GetPoolStatusRequest {}).await.unwrap_err(), "TOKEN_MISSING"),
        (
            grpc.release_reservations(authorized(&alice, release)).await.unwrap_err(),
            "INVALID_ARGUMENT",
        ),
        (
            grpc.reserve_key_packages(authorized(&alice, to_nobody.message().clone()))
                .await
                .unwrap_err(),
            "POOL_EXHAUSTED",
        ),
    ] {
        let id = status.metadata().get("x-request-id").unwrap().to_str().unwrap();
        let lines = about(&server, id);
        assert_eq!(lines.len(), 1, "{reason}: {lines:?}");
        assert!(lines[0].contains(reason), "{lines:?}");
    }
}

/// They are dropped in the midst of their work, and it is told once why.
#[tokio::test]
async fn a_call_past_its_deadline_or_cancelled_is_one_line_too() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let bob = token("bob", "phone");
    let lock = database.lock_table("pool").await;

    let late = [("grpc-timeout", "50m"), ("x-request-id", "the-one-that-is-late")];
    let mut call = connection.call("GetPoolStatus", Some(&bob), &late).await.unwrap();
    call.send(&v1::GetPoolStatusRequest {});
    let (_, status) = call.answer().await.unwrap();
    assert_eq!(status.unwrap().code(), tonic::Code::DeadlineExceeded);

    let cancelled = [("x-request-id", "the-one-that-is-cancelled")];
    let mut call = connection.call("GetPoolStatus", Some(&bob), &cancelled).await.unwrap();
    call.send(&v1::GetPoolStatusRequest {});
    database.waiting(2).await;
    call.cancel();
    server.logged("call given up").await;
    lock.release().await;

    for (id, told) in [(late[1].1, "DEADLINE_EXCEEDED"), (cancelled[0].1, "call given up")] {
        let lines = about(&server, id);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(told), "{lines:?}");
    }
}

#[tokio::test]
async fn the_filter_is_read_again_at_sighup() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default().text("log.filter", "info").text("log.format", "text");
    let server = Server::start(&database, &options).await;
    let fail = async || {
        let mut grpc = server.grpc().await;
        grpc.get_pool_status(v1::GetPoolStatusRequest {}).await.unwrap_err();
        server.log().matches("TOKEN_MISSING").count()
    };
    assert_eq!(fail().await, 1);
    server.reconfigure(&options.clone().text("log.filter", "error"));
    server.signal("HUP");
    server.logged("log.filter was read again").await;
    assert_eq!(fail().await, 1, "of a level that is not logged any more");
    server.reconfigure(&options.clone().text("log.filter", "no,=such"));
    server.signal("HUP");
    server.logged("log.filter cannot be read again").await;
    assert_eq!(fail().await, 1);
    server.reconfigure(&options);
    server.signal("HUP");
    until(async || fail().await > 1).await;
}

/// In a pod nobody sends a signal. The kubelet writes a new version of all files beside the old one,
/// and turns a link to it.
#[tokio::test]
async fn the_filter_follows_the_file_as_the_kubelet_changes_it() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default()
        .text("log.filter", "info")
        .text("log.format", "text")
        .text("log.reload_interval", "20ms");
    let server = Server::start(&database, &options).await;
    let folder = server.key_file().parent().unwrap().to_owned();
    let file = folder.join("keypool.toml");
    let text = fs::read_to_string(&file).unwrap();
    let mount = |version: &str, text: &str| {
        fs::create_dir(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("keypool.toml"), text).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    mount("..1", &text);
    symlink("..data/keypool.toml", folder.join("link")).unwrap();
    fs::rename(folder.join("link"), &file).unwrap();

    mount("..2", &text.replace("log.filter = \"info\"", "log.filter = \"debug\""));
    server.logged("log.filter was read again filter=\"debug\"").await;
    mount("..3", &text.replace("log.filter = \"info\"", "log.filter = \"no,=such\""));
    server.logged("log.filter cannot be read again").await;
    mount("..4", &text);
    server.logged("log.filter was read again filter=\"info\"").await;
    let log = server.log();
    assert_eq!(log.matches("log.filter cannot be read again").count(), 1, "once: {log}");
    assert_eq!(log.matches("log.filter was read again").count(), 2, "{log}");
}
