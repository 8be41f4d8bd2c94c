//! TLS 1.3 (RFC 8446) with what certificate files hold now.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use aws_lc_rs::digest::{Context as Hash, SHA256};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::sync::watch;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, crypto::aws_lc_rs::default_provider,
        server::WebPkiClientVerifier, version::TLS13,
    },
};
use tokio_util::sync::CancellationToken;
use x509_cert::{Certificate, der::Decode as _};

use crate::{certificates, metrics::metrics};

/// The only protocol spoken (RFC 7301).
const ALPN_H2: &[u8] = b"h2";

/// Where certificates and keys are: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those of the CAs between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs that clients' certificates must come from; without, clients need none.
    pub client_ca: Option<PathBuf>,
}

/// What the files hold.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl TlsFiles {
    fn read(&self) -> anyhow::Result<Contents> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, contents: &Contents) -> anyhow::Result<ServerConfig> {
        let named = |path: &Path| path.display().to_string();
        let chain = certificates::in_pem(&contents.certificate)
            .with_context(|| named(&self.certificate))?;
        // The parser's message is dropped: it may repeat what is in the file.
        let key = PrivateKeyDer::from_pem_slice(&contents.key).ok();
        let key = key.context("it holds no PEM private key").with_context(|| named(&self.key))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&[&TLS13])?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates::in_pem(pem).with_context(|| named(path))? {
                    roots.add(certificate).with_context(|| named(path))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
            _ => builder.with_no_client_auth(),
        };
        // Fails too when the key is not the certificate's.
        let config = builder.with_single_cert(chain, key);
        let mut config = config.with_context(|| named(&self.key))?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }

    fn served(&self, contents: &Contents) -> anyhow::Result<Served> {
        let config = Arc::new(self.config(contents)?);
        let chain = certificates::in_pem(&contents.certificate)?;
        let own = chain.first().context("it holds no certificate")?;
        let own = Certificate::from_der(own).context("no X.509 certificate");
        let own = own.with_context(|| self.certificate.display().to_string())?;
        let not_after = own.tbs_certificate().validity().not_after.to_unix_duration();
        Ok(Served { config, not_after })
    }
}

impl Contents {
    /// Tells one content from another without keeping a copy of the key.
    fn digest(&self) -> Vec<u8> {
        let mut hash = Hash::new(&SHA256);
        for bytes in [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()] {
            let bytes = bytes.map_or(&[][..], Vec::as_slice);
            hash.update(&bytes.len().to_be_bytes());
            hash.update(bytes);
        }
        hash.finish().as_ref().to_vec()
    }
}

/// What new connections are greeted with: all of it changes at once.
#[derive(Debug, Clone)]
pub struct Tls {
    files: TlsFiles,
    reload_interval: Duration,
    /// What was read last, usable or not; none when it could not be read.
    seen: Option<Vec<u8>>,
    current: watch::Sender<Served>,
}

/// What connections are greeted with now.
#[derive(Debug, Clone)]
struct Served {
    config: Arc<ServerConfig>,
    /// When the server's certificate ends, since 1970.
    not_after: Duration,
}

impl Tls {
    /// Reads the files; a server looks at them again at this interval.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold what it should; it is named.
    pub fn load(files: TlsFiles, reload_interval: Duration) -> anyhow::Result<Self> {
        let contents = files.read()?;
        let served = files.served(&contents)?;
        let seen = Some(contents.digest());
        let current = watch::Sender::new(served);
        Ok(Self { files, reload_interval, seen, current })
    }

    /// For one new connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.borrow().config.clone())
    }

    /// When the server's certificate ends, since 1970.
    pub(crate) fn not_after(&self) -> Duration {
        self.current.borrow().not_after
    }

    /// Sets the gauge of the certificate.
    pub(super) fn measure(&self) {
        let not_after = self.not_after().as_secs_f64();
        metrics().set("keypool_tls_certificate_not_after_seconds", &[], not_after);
    }

    /// Looks at the files again and again, and takes what they hold then, for connections to come.
    /// What cannot be used, as a certificate whose key has not followed yet, is logged, once, and
    /// changes nothing.
    pub(super) async fn follow(mut self, stop: CancellationToken) {
        let interval = self.reload_interval;
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { return };
            let digest = read.as_ref().ok().map(Contents::digest);
            if digest == self.seen {
                continue;
            }
            self.seen = digest;
            match read.and_then(|contents| self.files.served(&contents)) {
                Ok(served) => {
                    self.current.send_replace(served);
                    tracing::info!("the TLS files were read again");
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the new TLS files cannot be used; the old ones stay in use"
                ),
            }
        }
    }
}
