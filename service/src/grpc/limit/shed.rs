//! Calls are turned away at the door while too many wait, at the least cost: no token is verified,
//! no message is read, no line is logged.

use std::{
    convert::Infallible,
    future::Ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{self, Map},
};
use http::{HeaderMap, Request, Response};
use http_body_util::{Either, Empty};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

use super::{Kind, Limits};
use crate::{
    domain::error::Error,
    grpc::status,
    metrics::{self, metrics},
};

/// How many answers are kept ready: they differ in when to come back.
const ANSWERS: usize = 16;

/// Turns calls away while too many wait.
#[derive(Debug, Clone)]
pub struct ShedLayer {
    limits: Arc<Limits>,
    answers: Arc<[HeaderMap]>,
}

impl ShedLayer {
    /// By the gates of `limits`.
    pub fn new(limits: Arc<Limits>) -> Self {
        let answer =
            |_| status::to_status(&Error::Overloaded).into_http::<()>().into_parts().0.headers;
        Self { limits, answers: (0..ANSWERS).map(answer).collect() }
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, layer: self.clone() }
    }
}

/// See [`ShedLayer`].
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    layer: ShedLayer,
}

/// What the service behind it answers, or nothing.
type Answer<B> = Result<Response<Either<B, Empty<Bytes>>>, Infallible>;

impl<S, Q, B> Service<Request<Q>> for Shed<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<Either<B, Empty<Bytes>>>;
    type Error = Infallible;
    type Future = future::Either<
        Ready<Answer<B>>,
        Map<S::Future, fn(Result<Response<B>, Infallible>) -> Answer<B>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match Kind::of(request.uri().path()) {
            Some(kind) if self.layer.limits.sheds(kind) => {
                let turn = count_refused(&Error::Overloaded);
                metrics().shed.count(metrics::Shed::Queue);
                let call = metrics().calls.begin(request.uri().path());
                call.failed(tonic::Code::ResourceExhausted.into(), "OVERLOADED");
                // The remainder is below the number of answers.
                let answer = &self.layer.answers[turn as usize % ANSWERS];
                let mut response = Response::new(Either::Right(Empty::new()));
                *response.headers_mut() = answer.clone();
                future::Either::Left(std::future::ready(Ok(response)))
            }
            _ => future::Either::Right(
                self.inner.call(request).map(|answer| answer.map(|it| it.map(Either::Left))),
            ),
        }
    }
}

/// Refusals that are told in sums: a line for each would be another way to flood the server.
static RATE_LIMITED: AtomicU64 = AtomicU64::new(0);
static OVERLOADED: AtomicU64 = AtomicU64::new(0);

/// Counts a refusal that is not logged by itself; answers how many there were before.
pub(in crate::grpc) fn count_refused(error: &Error) -> u64 {
    let counter = match error {
        Error::RateLimited { .. } => &RATE_LIMITED,
        _ => &OVERLOADED,
    };
    // It only counts: no other memory is ordered by it.
    counter.fetch_add(1, Ordering::Relaxed)
}

/// Logs now and then how many calls were refused for their number, until told to stop.
pub async fn tell_refused(stop: CancellationToken) {
    const INTERVAL: Duration = Duration::from_secs(5);
    let counted = || [&RATE_LIMITED, &OVERLOADED].map(|counter| counter.load(Ordering::Relaxed));
    let mut told = counted();
    loop {
        let stopped = stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none();
        let [rate_limited, overloaded] = counted();
        if told != [rate_limited, overloaded] {
            let [before_rate_limited, before_overloaded] = told;
            tracing::warn!(
                rate_limited = rate_limited - before_rate_limited,
                overloaded = overloaded - before_overloaded,
                "calls were refused"
            );
            told = [rate_limited, overloaded];
        }
        if stopped {
            return;
        }
    }
}
