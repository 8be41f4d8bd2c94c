//! A large upload of the slowest cipher suite never holds up other calls.

use super::*;

/// P-521: the slowest to validate of all that are served.
const SLOWEST: u16 = 5;

#[tokio::test]
async fn other_calls_go_on_while_uploads_are_validated() {
    // Several times as many as there are threads that serve calls.
    let uploads = 4 * std::thread::available_parallelism().unwrap().get();
    let database = database().await;
    let allowed = options()
        .set("upload.cipher_suites", format!("[{SLOWEST}]"))
        .set("pool.hard_cap", 100)
        .text("server.request_timeout", "5m");
    let server = Server::start(&database, &allowed).await;
    let packages: Vec<Vec<u8>> =
        (0..100).map(|_| Forge::new(SLOWEST, "bob").valid_around(now()).build()).collect();
    let mut running = Vec::new();
    for n in 0..uploads {
        let token = keypool_testing::tokens::token("bob", &n.to_string());
        let patient = Client::builder(server.uri(), token);
        let client = patient.deadline(std::time::Duration::from_secs(300)).connect().await.unwrap();
        let packages = packages.clone();
        running.push(tokio::spawn(async move { client.upload(packages).await }));
    }
    let watcher = server.client("carol", "phone").await;
    let mut answered_meanwhile = 0;
    while running.iter().any(|upload| !upload.is_finished()) {
        watcher.pool_status().await.unwrap();
        answered_meanwhile += 1;
    }
    for upload in running {
        assert_eq!(upload.await.unwrap().unwrap().results.len(), 100);
    }
    // If uploads kept the serving threads busy, each of these would wait for several of them.
    assert!(
        answered_meanwhile > 2 * uploads,
        "only {answered_meanwhile} calls were answered during {uploads} uploads"
    );
}
