//! How many calls there are, how long they take, and how they end.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};

use crate::metrics::{Call, OpenStream, metrics};

/// The reason of an answer that carries none.
const UNEXPLAINED: &str = "UNEXPLAINED";
/// The reason of what tonic answers, without one, to what there is not: a method, a compression.
/// Anybody may ask for that, so it must not look like a fault.
const UNIMPLEMENTED: &str = "UNIMPLEMENTED";

/// Measures every call, from its headers to the start of its answer, and of a stream how it ends.
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
    type Response = Response<MeasuredBody<A>>;
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
    type Output = Result<Response<MeasuredBody<A>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        Poll::Ready(answer.map(|response| {
            let stream = this.call.take().and_then(|call| record(call, response.headers()));
            response.map(|body| MeasuredBody { body, stream })
        }))
    }
}

/// A failed call has its code in the headers of its answer; a successful one has none there yet,
/// and is a stream that goes on where the method is one.
fn record(call: Call, headers: &HeaderMap) -> Option<OpenStream> {
    match failure(headers) {
        Some((code, reason)) => {
            call.failed(code.into(), &reason);
            None
        }
        None => call.answered(Code::Ok.into()),
    }
}

/// How a call failed, by the headers or the trailers of its answer; none of one that did not.
fn failure(headers: &HeaderMap) -> Option<(Code, String)> {
    let status = Status::from_header_map(headers)?;
    let reason = match (status.get_details_error_info(), status.code()) {
        (_, Code::Ok) => return None,
        (Some(info), _) => info.reason,
        (None, Code::Unimplemented) => UNIMPLEMENTED.into(),
        (None, _) => UNEXPLAINED.into(),
    };
    Some((status.code(), reason))
}

pin_project! {
    /// The body of an answer. Of a stream, the trailers are read for how it ends.
    #[derive(Debug)]
    pub struct MeasuredBody<B> {
        #[pin]
        body: B,
        stream: Option<OpenStream>,
    }
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if this.stream.is_some()
            && let Some(Ok(frame)) = &frame
            && let Some((code, reason)) = frame.trailers_ref().and_then(failure)
            && let Some(stream) = this.stream.take()
        {
            stream.failed(code.into(), &reason);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
