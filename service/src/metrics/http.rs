//! `GET /metrics`, on a port of its own.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{UPKEEP, metrics};

/// More than a few scrapers are a mistake.
const MAX_CONNECTIONS: usize = 16;
/// One that does not say what it wants is cut.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A scraper that comes every minute connects anew.
const MAX_AGE: Duration = Duration::from_secs(300);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves the metrics until told to stop; `look` sets the gauges that are read when asked for.
/// Without a listener nothing is served.
pub async fn serve(
    listener: Option<TcpListener>,
    look: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let upkeep = async {
        loop {
            sleep(UPKEEP).await;
            metrics().upkeep();
        }
    };
    let accepting = async {
        match listener {
            Some(listener) => accept(listener, Arc::new(look)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = upkeep => {}
        () = accepting => {}
    }
}

async fn accept(listener: TcpListener, look: Arc<impl Fn() + Send + Sync + 'static>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let look = look.clone();
        tokio::spawn(async move {
            let _place = place;
            // What a scraper does wrong is its own concern.
            let _ = timeout(MAX_AGE, speak(stream, look)).await;
        });
    }
}

async fn speak(
    stream: TcpStream,
    look: Arc<impl Fn() + Send + Sync + 'static>,
) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &*look);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(method: &Method, path: &str, look: &impl Fn()) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET, "/metrics") => {
            look();
            (StatusCode::OK, metrics().render())
        }
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (_, "/metrics" | "/healthz") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "there is /metrics and /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(TEXT));
    response
}
