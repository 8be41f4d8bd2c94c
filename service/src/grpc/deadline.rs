//! The deadline of a call, as its caller sets it and as the server bounds it; and callers who do not
//! wait for theirs.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::service::refuse;
use crate::domain::error::Error;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Drops a call, and with it its work, once the deadline has passed that its caller set, or once
/// its request has not arrived and been answered in twice the time that each may take.
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    longest: Duration,
}

impl DeadlineLayer {
    /// A request may take `timeout` to arrive, and as long again to be answered.
    pub fn new(timeout: Duration) -> Self {
        Self { longest: timeout.saturating_mul(2) }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, longest: self.longest }
    }
}

/// See [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    longest: Duration,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let longest = requested(request.headers()).map_or(self.longest, |it| it.min(self.longest));
        let answer = self.inner.call(request);
        let unanswered = Unanswered(Some(Span::current()));
        Box::pin(async move {
            let answer = match timeout(longest, answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(refuse(&Error::DeadlineExceeded).into_http()),
            };
            unanswered.answered();
            answer
        })
    }
}

/// Logs that a call was dropped before there was an answer, which says itself why a call failed.
/// What it had in the database by then is as if its answer had been lost: a repeat with the same
/// `request_id` finds it.
struct Unanswered(Option<Span>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(span) = self.0.take() {
            span.in_scope(|| tracing::info!("call given up: cancelled, or its connection ended"));
        }
    }
}

/// The time that the caller gives: up to eight digits and a unit (gRPC over HTTP/2, Requests).
/// What is malformed is passed over.
pub(super) fn requested(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        let read = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            requested(&HeaderMap::from_iter([(GRPC_TIMEOUT.parse().unwrap(), value)]))
        };
        for (value, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("0u", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(read(value), Some(expected), "{value}");
        }
        for value in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789n", "1 S", "1µ"] {
            let bytes = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(GRPC_TIMEOUT.parse().unwrap(), bytes)]);
            assert_eq!(requested(&headers), None, "{value}");
        }
        assert_eq!(requested(&HeaderMap::new()), None);
    }
}
