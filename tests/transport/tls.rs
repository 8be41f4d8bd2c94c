//! TLS 1.3 only, with the certificate that the files hold now.

use std::sync::Arc;

use keypool_client::v1::{
    GetPoolStatusRequest, key_package_service_client::KeyPackageServiceClient,
};
use keypool_testing::{
    server::{ConfigFile, Server, until},
    tls::{Ca, SERVER_NAME, TlsFolder},
    tokens::{authorized, token},
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};
use tonic::transport::{Channel, ClientTlsConfig, Identity};

use super::*;

/// Whether a call is answered on this connection.
async fn serves(channel: Channel) -> bool {
    let request = authorized(&token("bob", "phone"), GetPoolStatusRequest {});
    KeyPackageServiceClient::new(channel).get_pool_status(request).await.is_ok()
}

/// Whether a new connection is served.
async fn admits(server: &Server, tls: ClientTlsConfig) -> bool {
    match server.channel_with(Some(tls)).await {
        Ok(channel) => serves(channel).await,
        Err(_) => false,
    }
}

async fn handshake(
    server: &Server,
    ca: &Ca,
    version: &'static SupportedProtocolVersion,
) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop)
}

#[tokio::test]
async fn it_serves_tls_1_3_and_nothing_else() {
    let (database, ca) = (database().await, Ca::new());
    let files = TlsFolder::of(&ca);
    let server = Server::start_with_tls(&database, &files.configure(options()), ca.trusted()).await;
    assert!(serves(server.channel().await).await);
    handshake(&server, &ca, &TLS13).await.unwrap();
    let old = handshake(&server, &ca, &TLS12).await.unwrap_err();
    assert!(old.to_string().contains("ProtocolVersion"), "{old}");
    assert!(!admits(&server, Ca::new().trusted()).await, "the test's client checks certificates");
    let plaintext = format!("http://{}", server.address());
    let plaintext = Channel::from_shared(plaintext).unwrap().connect().await;
    if let Ok(channel) = plaintext {
        assert!(!serves(channel).await);
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let (database, old, new) = (database().await, Ca::new(), Ca::new());
    let files = TlsFolder::of(&old);
    let server =
        Server::start_with_tls(&database, &files.configure(options()), old.trusted()).await;
    let before = server.channel().await;
    assert!(serves(before.clone()).await);
    assert!(!admits(&server, new.trusted()).await);
    files.renew(&new);
    until(async || admits(&server, new.trusted()).await).await;
    assert!(!admits(&server, old.trusted()).await);
    assert!(serves(before).await, "connections that are there stay");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_logged_and_change_nothing() {
    let (database, ca) = (database().await, Ca::new());
    let files = TlsFolder::of(&ca);
    let server = Server::start_with_tls(&database, &files.configure(options()), ca.trusted()).await;
    let complaints = || server.log().matches("the new TLS files cannot be used").count();
    let renewed = || server.log().matches("the TLS files were read again").count();
    let key = std::fs::read_to_string(files.path("tls.key")).unwrap();
    let (_, other) = ca.issue("other", x509_usage());
    for (at, bad) in ["", "no key", &other].into_iter().enumerate() {
        files.write("tls.key", bad);
        until(async || complaints() == at + 1).await;
        assert!(admits(&server, ca.trusted()).await, "{bad:?}");
    }
    let log = server.log();
    assert!(log.contains("tls.key"), "{log}");
    for secret in [&key, &other] {
        let line = secret.lines().nth(1).unwrap();
        assert!(!log.contains(line), "a private key is in the log");
    }
    std::fs::remove_file(files.path("tls.key")).unwrap();
    until(async || complaints() == 4).await;
    assert!(admits(&server, ca.trusted()).await);
    files.write("tls.key", &key);
    until(async || renewed() == 1).await;
    assert!(admits(&server, ca.trusted()).await);
    assert_eq!(complaints(), 4, "each is told once");
}

fn x509_usage() -> keypool_testing::x509::rcgen::ExtendedKeyUsagePurpose {
    keypool_testing::x509::rcgen::ExtendedKeyUsagePurpose::ServerAuth
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_get_in() {
    let (database, ca, clients, others) = (database().await, Ca::new(), Ca::new(), Ca::new());
    let files = TlsFolder::of(&ca);
    files.write("client-ca.crt", &clients.pem);
    let configured = files
        .configure(options())
        .text("tls.client_ca", files.path("client-ca.crt").to_str().unwrap());
    let showing = |identity: Identity| ca.trusted().identity(identity);
    let server = Server::start_with_tls(&database, &configured, showing(clients.client())).await;
    assert!(admits(&server, showing(clients.client())).await);
    assert!(!admits(&server, ca.trusted()).await, "no certificate");
    assert!(!admits(&server, showing(others.client())).await, "a certificate of another CA");
    let usage = x509_usage();
    let (certificate, key) = clients.issue("server.test", usage);
    let server_like = Identity::from_pem(certificate, key);
    assert!(!admits(&server, showing(server_like)).await, "a certificate for servers");

    let channel = server.channel().await;
    let mut grpc = KeyPackageServiceClient::new(channel);
    let refused = grpc.get_pool_status(GetPoolStatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "a certificate is no token");

    files.write("client-ca.crt", &others.pem);
    until(async || admits(&server, showing(others.client())).await).await;
    assert!(!admits(&server, showing(clients.client())).await);
}

#[tokio::test]
async fn it_starts_only_with_tls_or_the_word_plaintext() {
    let database = database().await;
    let silent = options().set("server.plaintext", false);
    let folder = TlsFolder::of(&Ca::new());
    std::fs::remove_file(folder.path("tls.key")).unwrap();
    let both = folder.configure(options());
    let lacking = both.clone().set("server.plaintext", false);
    for (options, command, problem) in [
        (&silent, "serve", "tls: needs a certificate and a key"),
        (&silent, "check", "tls: needs a certificate and a key"),
        (&both, "serve", "server.plaintext: excludes tls.certificate"),
        (&lacking, "serve", "tls.key: No such file"),
        (&lacking, "check", "tls.key: No such file"),
    ] {
        let run = ConfigFile::new(database.url(), options).run(command).await;
        let told = [run.stdout, run.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert_eq!(run.status.code(), Some(1), "{told}");
        assert!(told.contains(problem), "{command}: {told}");
    }
}
