//! How many calls there are, how long they take, and how they end.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};

use crate::metrics::{Call, metrics};

/// The reason of an answer that carries none.
const UNEXPLAINED: &str = "UNEXPLAINED";

/// Measures every call, from its headers to the start of its answer.
#[derive(Debug, Clone, Copy)]
pub struct MeasureLayer;

impl<S> Layer<S> for MeasureLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Measure<S> {
        Measure { inner }
    }
}

/// See [`MeasureLayer`].
#[derive(Debug, Clone)]
pub struct Measure<S> {
    inner: S,
}

impl<S, Q, A> Service<Request<Q>> for Measure<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Measured<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let call = Some(metrics().calls.begin(request.uri().path()));
        Measured { answer: self.inner.call(request), call }
    }
}

pin_project! {
    /// The answer to a call, measured. Dropped before it is there, the call was cancelled.
    #[derive(Debug)]
    pub struct Measured<F> {
        #[pin]
        answer: F,
        call: Option<Call>,
    }
}

impl<F, A, E> Future for Measured<F>
where
    F: Future<Output = Result<Response<A>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        if let (Some(call), Ok(response)) = (this.call.take(), &answer) {
            record(call, response.headers());
        }
        Poll::Ready(answer)
    }
}

/// A failed call has its code in the headers of its answer; a successful one has none there yet.
fn record(call: Call, headers: &HeaderMap) {
    if !headers.contains_key(Status::GRPC_STATUS) {
        return call.answered(Code::Ok.into());
    }
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Ok => call.answered(Code::Ok.into()),
        Some(status) => {
            let info = status.get_details_error_info();
            let reason = info.as_ref().map_or(UNEXPLAINED, |info| info.reason.as_str());
            call.failed(status.code().into(), reason);
        }
        None => call.failed(Code::Unknown.into(), UNEXPLAINED),
    }
}
