use std::{error::Error as StdError, fmt};

use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject as _};
use tonic::transport::{ClientTlsConfig, Identity};

use crate::Error;

/// How the server proves who it is, and this client to the server.
///
/// TLS 1.2 or 1.3 by rustls, on aws-lc-rs unless the process installed another provider.
///
/// ```no_run
/// # use keypool_client::{Client, Tls};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::ca_pem(std::fs::read("ca.pem")?)
///     .identity_pem(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// let builder = Client::builder("https://keypool.example:50051", "token").tls(tls);
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
#[must_use = "a Tls does nothing until a Builder takes it"]
pub struct Tls {
    ca_pem: Option<Vec<u8>>,
    identity: Option<Identity>,
    server_name: Option<String>,
}

impl Tls {
    /// Trusts what this machine trusts, or `SSL_CERT_FILE` and `SSL_CERT_DIR` where they are
    /// set. An `https://` address does so by itself.
    pub fn native_roots() -> Self {
        Self::default()
    }

    /// Trusts these CAs alone: one or more certificates in PEM.
    pub fn ca_pem(pem: impl Into<Vec<u8>>) -> Self {
        Self { ca_pem: Some(pem.into()), ..Self::default() }
    }

    /// Shows this certificate (and its chain) to a server that asks for one, with its private
    /// key; both in PEM.
    pub fn identity_pem(mut self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(chain, key));
        self
    }

    /// Expects this name in the server's certificate, rather than the host of the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Expects this name unless another one was set.
    pub(crate) fn or_server_name(mut self, name: String) -> Self {
        self.server_name.get_or_insert(name);
        self
    }

    pub(crate) fn config(&self) -> Result<ClientTlsConfig, Error> {
        let mut config = match &self.ca_pem {
            Some(pem) => ClientTlsConfig::new().trust_anchors(anchors(pem)?),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(identity) = &self.identity {
            config = config.identity(identity.clone());
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        Ok(config)
    }
}

/// Never shows the private key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("native_roots", &self.ca_pem.is_none())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

fn anchors(pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, Error> {
    let unusable = |why: &dyn fmt::Display| Error::Config(format!("the CA cannot be used: {why}"));
    let mut anchors = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        let anchor = webpki::anchor_from_trusted_cert(&certificate);
        anchors.push(anchor.map_err(|error| unusable(&error))?.to_owned());
    }
    if anchors.is_empty() {
        return Err(unusable(&"there is no certificate in it"));
    }
    Ok(anchors)
}

/// An error with its causes, as tonic's own text names none.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
