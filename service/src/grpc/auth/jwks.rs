//! The keys that an issuer publishes at a URL: a JWKS document (RFC 7517, section 5) over HTTPS.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider},
};

use crate::{certificates, config::JwksSection};

/// How long one fetch may take, from the name's lookup to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A longer document is not read.
const MAX_BYTES: usize = 256 * 1024;

/// Where the document is, and whom to believe that it is there.
#[derive(Debug)]
pub(super) struct Jwks {
    uri: Uri,
    tls: Arc<ClientConfig>,
}

impl Jwks {
    /// # Errors
    /// A CA file that cannot be used.
    pub(super) fn new(section: &JwksSection) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        match &section.ca {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                for certificate in certificates::in_file(path)? {
                    roots.add(certificate).with_context(|| path.display().to_string())?;
                }
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { uri: section.url.clone(), tls: Arc::new(tls) })
    }

    /// The document. Redirections are not followed: the URL is whom the operator trusts.
    pub(super) async fn fetch(&self) -> anyhow::Result<String> {
        timeout(TIMEOUT, self.get()).await.context("it took too long")?
    }

    async fn get(&self) -> anyhow::Result<String> {
        let host = self.uri.host().context("the URL has no host")?;
        let bare = host.trim_start_matches('[').trim_end_matches(']'); // of an IPv6 address
        let port = self.uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((bare, port)).await.context("cannot connect")?;
        let name = ServerName::try_from(bare.to_owned()).context("the host is no name")?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        let stream = TokioIo::new(stream.context("no TLS")?);
        let (mut requests, connection) = http1::handshake(stream).await?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or(host, |authority| authority.as_str());
        let request = Request::get(path)
            .header(header::HOST, HeaderValue::from_str(authority)?)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "keypool")
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = requests.send_request(request).await?;
            let code = response.status();
            ensure!(code == StatusCode::OK, "the answer is {code}");
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            // Its cause may repeat what was sent.
            let body = body.ok().context("it could not be read, or is too long")?.to_bytes();
            String::from_utf8(body.to_vec()).ok().context("it is no text")
        };
        // The connection has to be driven beside, and ends with the answer.
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => answer,
            ended = &mut connection => {
                ended?;
                answer.await
            }
        }
    }
}
