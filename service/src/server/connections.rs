//! Connections: how many there may be, and the life of each from its handshake to its end.

use std::{convert::Infallible, error::Error as StdError, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};

use super::{
    calls::{Calls, Kind},
    tls::Tls,
};
use crate::metrics::{RefusedConnection, metrics};

/// A connection that was told to go, and has no call, is cut after this time.
const LINGER: Duration = Duration::from_secs(5);
/// How much of an answer is kept ready for a peer that does not take it, bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// After a connection could not be accepted, most likely for want of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What bounds the connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// How many there may be; one more is closed at once.
    pub max_connections: usize,
    /// How many calls and streams one may carry at once.
    pub max_streams: u32,
    /// The size of the headers of one call, as HTTP/2 counts it (RFC 9113, section 10.5.1).
    pub max_header_bytes: u32,
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// One without a call for this time is closed.
    pub idle_timeout: Duration,
    /// A peer is asked at this interval whether it is still there.
    pub keepalive_interval: Duration,
    /// A peer that does not answer that in time is gone.
    pub keepalive_timeout: Duration,
    /// One is closed after about this time, so that a rollout and the balancing of load reach it.
    pub max_age: Duration,
}

/// Serves connections until told to stop, then returns once all have ended: their calls are
/// finished, new ones are sent elsewhere (GOAWAY).
pub(super) async fn serve<S, B>(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: ConnectionLimits,
    service: S,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let mut full = false;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                continue;
            }
        };
        let place = places.clone().try_acquire_owned().ok();
        if place.is_none() && !full {
            tracing::warn!(limit = limits.max_connections, "no more connections are accepted");
        }
        full = place.is_none();
        let Some(place) = place else {
            metrics().connections_refused.count(RefusedConnection::Full);
            continue;
        };
        let connection = Connection {
            http: http(&limits),
            limits: limits.clone(),
            stop: stop.clone(),
            _place: place,
        };
        connections.spawn(connection.run(stream, tls.clone(), service.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn http(limits: &ConnectionLimits) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.max_header_bytes)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    http
}

struct Connection {
    http: http2::Builder<TokioExecutor>,
    limits: ConnectionLimits,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run<S, B>(self, stream: TcpStream, tls: Option<Tls>, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let _counted = metrics().connections.begin();
        let _ = stream.set_nodelay(true); // slower without, not wrong
        let Some(tls) = tls else { return self.speak(stream, service).await };
        let handshake = timeout(self.limits.handshake_timeout, tls.acceptor().accept(stream));
        match self.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.speak(Box::new(stream), service).await,
            Some(Ok(Err(error))) => {
                metrics().connections_refused.count(RefusedConnection::Handshake);
                tracing::debug!(%error, "no TLS handshake");
            }
            Some(Err(_)) => {
                metrics().connections_refused.count(RefusedConnection::Handshake);
                tracing::debug!("a TLS handshake took too long");
            }
            None => {}
        }
    }

    /// Speaks HTTP/2 until the peer, an error, the age, idleness or the end of the server ends it.
    async fn speak<IO, S, B>(self, io: IO, service: S)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let calls = Calls::default();
        let service = service_fn(|request: Request<Incoming>| {
            let call = calls.begin(Kind::of(request.uri().path()));
            let answer = service.clone().oneshot(request);
            async move { Ok::<_, Infallible>(answer.await?.map(|body| call.until_sent(body))) }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(io), service));
        let is_over = async {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(self.limits.max_age) => {}
                () = calls.none_for(self.limits.idle_timeout) => {}
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = is_over => {
                connection.as_mut().graceful_shutdown();
                // Streams end at their own age; one that nobody reads does not notice.
                let overdue = self.limits.max_age.saturating_mul(2);
                tokio::select! {
                    ended = connection => ended,
                    // The peer does not answer that it is to go.
                    () = calls.no_work_for(LINGER) => Ok(()),
                    () = sleep(overdue) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = &error as &dyn StdError, "a connection failed");
        }
    }
}
