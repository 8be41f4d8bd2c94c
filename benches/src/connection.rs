//! gRPC calls over one HTTP/2 connection, as cheaply as a client can make them: the load generator
//! shares its cores with what it measures.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

/// A call that takes longer is an error.
const DEADLINE: Duration = Duration::from_secs(30);
/// The length of a gRPC message's prefix: compressed or not, and its length.
const PREFIX: usize = 5;

/// Where keypool listens.
#[derive(Clone)]
pub(crate) struct Peer {
    address: SocketAddr,
    /// How to speak TLS with it, where it does.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Peer {
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// One that shows a certificate of this name, by a CA whose own is in `ca`, PEM.
    pub(crate) fn secured(address: SocketAddr, name: &str, ca: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.to_owned())?;
        Ok(Self { address, tls: Some((TlsConnector::from(Arc::new(config)), name)) })
    }
}

/// One connection to keypool. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    peer: Peer,
}

/// What a call was answered with instead of a message.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The code of the status, as in `google.rpc.Code`.
    code: String,
    message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// Whether its code is RESOURCE_EXHAUSTED.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.code == "8"
    }

    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl Connection {
    pub(crate) async fn open(peer: &Peer) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(peer.address).await.context("connecting to keypool")?;
        stream.set_nodelay(true)?;
        let sender = match &peer.tls {
            None => begin(stream).await?,
            Some((tls, name)) => begin(tls.connect(name.clone(), stream).await?).await?,
        };
        Ok(Self { sender, peer: peer.clone() })
    }

    /// Calls a method of the service; `token` is the whole `authorization` header. When the server
    /// has told the connection to go before it took the call, another one carries it.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &mut self,
        method: &str,
        token: &HeaderValue,
        message: &Q,
    ) -> anyhow::Result<A> {
        let uri = self.uri(&format!("/keypool.v1.KeyPackageService/{method}"))?;
        let frame = frame(message)?;
        match self.send(&uri, token, frame.clone()).await {
            Err(error) if was_told_to_go(&error) => {
                *self = Self::open(&self.peer).await?;
                self.send(&uri, token, frame).await
            }
            answer => answer,
        }
    }

    /// The URI of a method, to be used again.
    pub(crate) fn uri(&self, path: &str) -> anyhow::Result<Uri> {
        let scheme = if self.peer.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(self.peer.address.to_string());
        Ok(uri.path_and_query(path).build()?)
    }

    /// Calls with a message that is framed already.
    pub(crate) async fn send<A: Message + Default>(
        &self,
        uri: &Uri,
        token: &HeaderValue,
        frame: Bytes,
    ) -> anyhow::Result<A> {
        let answer = self.exchange(uri, token, frame);
        tokio::time::timeout(DEADLINE, answer).await.context("no answer in time")?
    }

    async fn exchange<A: Message + Default>(
        &self,
        uri: &Uri,
        token: &HeaderValue,
        frame: Bytes,
    ) -> anyhow::Result<A> {
        let mut body = self.open_stream(uri, token, frame).await?;
        let mut answer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            answer.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?;
        check(&trailers.context("an answer without trailers")?)?;
        let message = answer.get(PREFIX..).context("an answer without a message")?;
        Ok(A::decode(message)?)
    }

    /// Calls, and returns what comes after the headers of the answer.
    pub(crate) async fn open_stream(
        &self,
        uri: &Uri,
        token: &HeaderValue,
        frame: Bytes,
    ) -> anyhow::Result<RecvStream> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri.clone())
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::AUTHORIZATION, token)
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(frame, true)?;
        let response = response.await?;
        check(response.headers())?;
        Ok(response.into_body())
    }
}

async fn begin<S>(stream: S) -> Result<SendRequest<Bytes>, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(stream)
        .await?;
    // Its errors reach the calls.
    tokio::spawn(connection);
    Ok(sender)
}

/// Whether the server was too busy for the call.
pub(crate) fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(Refusal::is_exhausted)
}

/// Whether the call was not begun, because its connection was told to go (GOAWAY).
pub(crate) fn was_told_to_go(error: &anyhow::Error) -> bool {
    error.downcast_ref::<h2::Error>().is_some_and(|error| {
        (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
            || error.reason() == Some(Reason::REFUSED_STREAM)
    })
}

/// A message as gRPC frames it, not compressed.
pub(crate) fn frame(message: &impl Message) -> anyhow::Result<Bytes> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length)?);
    message.encode(&mut frame)?;
    Ok(frame.freeze())
}

/// Passes what is no status, or status OK.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| {
        let value = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        value.unwrap_or_default().into_owned()
    };
    match headers.get("grpc-status") {
        Some(code) if code != "0" => {
            Err(Refusal { code: text("grpc-status"), message: text("grpc-message") })
        }
        _ => Ok(()),
    }
}
