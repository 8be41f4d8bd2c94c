//! TLS and mutual TLS, with certificates made here.

use keypool_client::{Client, Error, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::fake::Fake;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", self.0.der())
    }

    /// A certificate and its private key.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
    }

    fn server(&self, name: &str) -> ServerTlsConfig {
        let (chain, key) = self.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        ServerTlsConfig::new().identity(Identity::from_pem(chain, key))
    }
}

fn pem(tag: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(tag, der))
}

async fn call(url: String, tls: Tls) -> Result<(), Error> {
    let client = Client::builder(url, "token").tls(tls).retries(0).connect_lazy()?;
    client.pool_status().await.map(drop)
}

fn url(fake: &Fake) -> String {
    format!("https://localhost:{}", fake.port())
}

#[tokio::test]
async fn a_server_of_the_given_ca_is_trusted_and_no_other() {
    let ca = Ca::new("ours");
    let fake = Fake::with_tls(ca.server("localhost")).await;
    call(url(&fake), Tls::ca_pem(ca.pem())).await.unwrap();

    let both = Ca::new("another").pem() + &ca.pem();
    call(url(&fake), Tls::ca_pem(both)).await.unwrap();

    for tls in [Tls::ca_pem(Ca::new("ours").pem()), Tls::native_roots()] {
        let error = call(url(&fake), tls).await.unwrap_err();
        assert!(matches!(error, Error::Transport(_)), "{error:?}");
    }
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test]
async fn the_certificate_must_name_the_host_or_the_name_that_was_set() {
    let ca = Ca::new("ours");
    let fake = Fake::with_tls(ca.server("keypool.example")).await;
    let error = call(url(&fake), Tls::ca_pem(ca.pem())).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    call(url(&fake), Tls::ca_pem(ca.pem()).server_name("keypool.example")).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_looked_up_is_still_the_one_that_the_certificate_must_have() {
    let ca = Ca::new("ours");
    let fake = Fake::with_tls(ca.server("localhost")).await;
    let builder = Client::builder(url(&fake), "token").tls(Tls::ca_pem(ca.pem()));
    let builder = builder.resolve_every(std::time::Duration::from_secs(3600));
    let client = builder.connect().await.unwrap(); // at 127.0.0.1 now, a name it does not have
    for _ in 0..3 {
        client.pool_status().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let (ca, clients) = (Ca::new("ours"), Ca::new("of clients"));
    let server = ca.server("localhost").client_ca_root(Certificate::from_pem(clients.pem()));
    let fake = Fake::with_tls(server).await;
    let (chain, key) = clients.issue("phone", ExtendedKeyUsagePurpose::ClientAuth);
    call(url(&fake), Tls::ca_pem(ca.pem()).identity_pem(&chain, &key)).await.unwrap();

    let (chain, key) = ca.issue("phone", ExtendedKeyUsagePurpose::ClientAuth);
    for tls in [Tls::ca_pem(ca.pem()), Tls::ca_pem(ca.pem()).identity_pem(chain, key)] {
        let error = call(url(&fake), tls).await.unwrap_err();
        assert!(matches!(error, Error::Transport(_)), "{error:?}");
    }
    assert_eq!(fake.asked().len(), 1);
}

/// Run by [`native_roots_are_those_of_the_machine`], with the server's URL in the environment.
#[tokio::test]
#[ignore = "a child of another test"]
async fn child_with_native_roots() {
    let url = std::env::var("KEYPOOL_TEST_URL").unwrap();
    Client::connect(url.clone(), "token").await.unwrap().pool_status().await.unwrap();
    call(url, Tls::native_roots()).await.unwrap();
}

#[tokio::test]
async fn native_roots_are_those_of_the_machine() {
    let ca = Ca::new("ours");
    let fake = Fake::with_tls(ca.server("localhost")).await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&roots, ca.pem()).unwrap();
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tls::child_with_native_roots"])
        .env("KEYPOOL_TEST_URL", url(&fake))
        .env("SSL_CERT_FILE", roots.path())
        .env_remove("SSL_CERT_DIR")
        .output();
    let output = child.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test]
async fn settings_that_will_not_do_are_config_errors() {
    let ca = Ca::new("ours");
    let (chain, key) = ca.issue("phone", ExtendedKeyUsagePurpose::ClientAuth);
    let (_, other_key) = ca.issue("phone", ExtendedKeyUsagePurpose::ClientAuth);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let good = || Tls::ca_pem(ca.pem());
    let cases = [
        ("https://host", Tls::ca_pem("")),
        ("https://host", Tls::ca_pem(key.clone())),
        ("https://host", Tls::ca_pem(broken)),
        ("https://host", good().identity_pem("", &key)),
        ("https://host", good().identity_pem(&chain, "")),
        ("https://host", good().identity_pem(&chain, &other_key)),
        ("https://host", good().server_name("not a name")),
        ("http://host", good()), // would send the token in the clear
    ];
    for (number, (address, tls)) in cases.into_iter().enumerate() {
        let built = Client::builder(address, "token").tls(tls).connect_lazy();
        assert!(matches!(built, Err(Error::Config(_))), "case {number}: {built:?}");
    }
    let shown = format!("{:?}", good().identity_pem(&chain, &key));
    assert_eq!(shown, r#"Tls { native_roots: false, identity: true, server_name: None }"#);
}
