//! HTTP/2 by hand, for what no gRPC client does.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    Reason, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, StatusCode};
use keypool_client::v1;
use prost::Message;
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::Status;

/// A connection without TLS.
#[derive(Debug)]
pub struct RawConnection {
    requests: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

impl RawConnection {
    /// Connects.
    ///
    /// # Errors
    /// When the server ends it at once.
    pub async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        Ok(Self { requests, ended: tokio::spawn(connection) })
    }

    /// Connects, and has a call without a token answered: the connection is there for good.
    ///
    /// # Errors
    /// When the server ends it before.
    pub async fn answered(address: SocketAddr) -> anyhow::Result<Self> {
        let mut connection = Self::to(address).await?;
        let mut call = connection.call("GetPoolStatus", None, &[]).await?;
        call.send(&v1::GetPoolStatusRequest {});
        call.answer().await?;
        Ok(connection)
    }

    /// How many calls the server allows at once.
    pub fn max_streams(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// Begins a call; its message is yet to be sent.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn call(
        &mut self,
        rpc: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<RawCall, h2::Error> {
        let uri = format!("http://keypool/keypool.v1.KeyPackageService/{rpc}");
        let mut request =
            Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        std::future::poll_fn(|cx| self.requests.poll_ready(cx)).await?;
        let (response, body) = self.requests.send_request(request, false)?;
        Ok(RawCall { response, body })
    }

    /// Returns once the connection has ended: with Ok when the server ended it in good order.
    ///
    /// # Errors
    /// It was cut.
    pub async fn ended(self) -> Result<(), h2::Error> {
        // The handle on the connection must live, or the client itself would end it.
        let Self { requests, ended } = self;
        let ended = ended.await.expect("a connection's task");
        drop(requests);
        ended
    }
}

/// A call under way.
#[derive(Debug)]
pub struct RawCall {
    response: ResponseFuture,
    body: SendStream<Bytes>,
}

impl RawCall {
    /// Sends the message, and that there are no more.
    pub fn send(&mut self, message: &impl Message) {
        let message = message.encode_to_vec();
        let mut frame = BytesMut::new();
        frame.put_u8(0); // not compressed
        frame.put_u32(message.len().try_into().expect("a short message"));
        frame.put_slice(&message);
        self.body.send_data(frame.freeze(), true).expect("an open stream");
    }

    /// Sends some bytes of the call's body, and perhaps that there are no more.
    ///
    /// # Errors
    /// When the server has ended the call.
    pub fn send_bytes(&mut self, bytes: Vec<u8>, end: bool) -> Result<(), h2::Error> {
        self.body.send_data(bytes.into(), end)
    }

    /// Cancels the call.
    pub fn cancel(&mut self) {
        self.body.send_reset(Reason::CANCEL);
    }

    /// The HTTP status, and the status of the call.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn answer(&mut self) -> Result<(StatusCode, Option<Status>), h2::Error> {
        let response = (&mut self.response).await?;
        let code = response.status();
        let status = Status::from_header_map(response.headers());
        let mut body = response.into_body();
        if status.is_some() {
            return Ok((code, status));
        }
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
        }
        let trailers: Option<HeaderMap> = body.trailers().await?;
        Ok((code, trailers.as_ref().and_then(Status::from_header_map)))
    }
}
