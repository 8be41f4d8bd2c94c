//! Certificates of servers and of their clients.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::server::ServerOptions;

/// The name in every server's certificate.
pub const SERVER_NAME: &str = "keypool.test";

fn certificate_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

/// A CA.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, in PEM.
    pub pem: String,
}

impl Ca {
    /// A new one.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a CA of the tests");
        let pem = certificate_pem(params.self_signed(&key).expect("a certificate").der());
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a name, and its key, in PEM.
    pub fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = pem::encode(&pem::Pem::new("PRIVATE KEY", key.serialize_der()));
        (certificate_pem(certificate.der()), key)
    }

    /// A client that trusts servers of this CA only.
    pub fn trusted(&self) -> ClientTlsConfig {
        let ca = Certificate::from_pem(&self.pem);
        ClientTlsConfig::new().ca_certificate(ca).domain_name(SERVER_NAME)
    }

    /// What a server of this name shows.
    pub fn server(&self, name: &str) -> Identity {
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        Identity::from_pem(certificate, key)
    }

    /// What a client shows that this CA vouches for.
    pub fn client(&self) -> Identity {
        let (certificate, key) = self.issue("client.test", ExtendedKeyUsagePurpose::ClientAuth);
        Identity::from_pem(certificate, key)
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

/// The files that a server reads its certificate from.
#[derive(Debug)]
pub struct TlsFolder(TempDir);

impl TlsFolder {
    /// With a certificate of `ca`.
    pub fn of(ca: &Ca) -> Self {
        let folder = Self(TempDir::new().expect("a folder"));
        folder.renew(ca);
        folder
    }

    /// Replaces certificate and key by new ones of `ca`.
    pub fn renew(&self, ca: &Ca) {
        let (certificate, key) = ca.issue(SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        self.write("tls.crt", &certificate);
        self.write("tls.key", &key);
    }

    /// Replaces one file, at once.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).expect("a file");
        fs::rename(new, self.path(name)).expect("its place");
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `options` for a server with these files, which it looks at all the time.
    pub fn configure(&self, options: ServerOptions) -> ServerOptions {
        let path = |name| self.path(name).to_str().expect("a UTF-8 path").to_owned();
        options
            .text("tls.certificate", path("tls.crt"))
            .text("tls.key", path("tls.key"))
            .text("tls.reload_interval", "20ms")
    }
}
