//! What the requests under way take up: how many there are, and the bytes of their messages, in all
//! and for each caller. It keeps those who send slowly, or much, from taking everything.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

use super::super::service::refuse;
use crate::{
    domain::{error::Error, ids::ClientDigest},
    metrics::{RateLimit, Shed, metrics},
};

/// What requests may take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// How many there may be.
    pub requests: usize,
    /// How many one caller may have.
    pub requests_per_caller: usize,
    /// The bytes of messages that have arrived of requests that are not answered.
    pub bytes: usize,
    /// Those of one caller.
    pub bytes_per_caller: usize,
}

/// The requests under way.
#[derive(Debug)]
pub(super) struct Requests {
    limits: RequestLimits,
    total: AtomicUsize,
    bytes: AtomicUsize,
    /// Holds no more than there are requests.
    callers: Mutex<HashMap<ClientDigest, Held>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    requests: usize,
    bytes: usize,
}

impl Requests {
    pub(super) fn new(limits: RequestLimits) -> Self {
        Self {
            limits,
            total: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            callers: Mutex::default(),
        }
    }

    /// Counts a request until what this returns is dropped.
    pub(super) fn begin(self: &Arc<Self>, caller: ClientDigest) -> Result<Arc<Request>, Error> {
        if !add(&self.total, 1, self.limits.requests) {
            return Err(overloaded());
        }
        let mut callers = self.lock();
        let held = callers.entry(caller).or_default();
        if held.requests >= self.limits.requests_per_caller {
            drop(callers);
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(limited("calls of one client at once"));
        }
        held.requests += 1;
        drop(callers);
        Ok(Arc::new(Request { requests: self.clone(), caller, bytes: AtomicUsize::new(0) }))
    }

    /// Each change is one call, so a panic elsewhere leaves the map whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<ClientDigest, Held>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overloaded() -> Error {
    metrics().shed.count(Shed::Places);
    Error::Overloaded
}

fn limited(what: &'static str) -> Error {
    metrics().rate_limited.count(RateLimit::Requests);
    Error::rate_limited(what)
}

/// Adds unless the sum exceeds `most`.
fn add(counter: &AtomicUsize, more: usize, most: usize) -> bool {
    let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
    // It only counts: no other memory is ordered by it.
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// A request under way, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Request {
    requests: Arc<Requests>,
    caller: ClientDigest,
    bytes: AtomicUsize,
}

impl Request {
    /// Counts what arrives of its message.
    fn arrived(&self, bytes: usize) -> Result<(), Error> {
        let Requests { limits, bytes: all, .. } = &*self.requests;
        if !add(all, bytes, limits.bytes) {
            return Err(overloaded());
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(held) = self.requests.lock().get_mut(&self.caller) {
            held.bytes += bytes;
            if held.bytes > limits.bytes_per_caller {
                return Err(limited("bytes of one client at once"));
            }
        }
        Ok(())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.requests.total.fetch_sub(1, Ordering::Relaxed);
        self.requests.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut callers = self.requests.lock();
        if let Some(held) = callers.get_mut(&self.caller) {
            held.requests -= 1;
            held.bytes -= bytes;
            if held.requests == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

pin_project! {
    /// The message of a request, counted as it arrives.
    pub(super) struct Counted<B> {
        #[pin]
        body: B,
        request: Arc<Request>,
    }
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, request: Arc<Request>) -> Self {
        Self { body, request }
    }
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes, Error = Status>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if bytes > 0
            && let Err(error) = this.request.arrived(bytes)
        {
            return Poll::Ready(Some(Err(refuse(&error))));
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits =
        RequestLimits { requests: 3, requests_per_caller: 2, bytes: 100, bytes_per_caller: 60 };

    fn caller(n: u8) -> ClientDigest {
        ClientDigest([n; 16])
    }

    #[test]
    fn requests_are_counted_in_all_and_for_each_caller() {
        let requests = Arc::new(Requests::new(LIMITS));
        let first = requests.begin(caller(1)).unwrap();
        let _second = requests.begin(caller(1)).unwrap();
        assert!(matches!(requests.begin(caller(1)), Err(Error::RateLimited { .. })));
        let _third = requests.begin(caller(2)).unwrap();
        assert!(matches!(requests.begin(caller(3)), Err(Error::Overloaded)));
        drop(first);
        requests.begin(caller(1)).unwrap();
    }

    #[test]
    fn bytes_are_counted_in_all_and_for_each_caller_and_nothing_is_left_behind() {
        let requests = Arc::new(Requests::new(LIMITS));
        let [first, second] = [caller(1), caller(2)].map(|it| requests.begin(it).unwrap());
        first.arrived(50).unwrap();
        assert!(matches!(first.arrived(11), Err(Error::RateLimited { .. })));
        second.arrived(39).unwrap();
        assert!(matches!(second.arrived(1), Err(Error::Overloaded)));
        drop(first);
        second.arrived(1).unwrap();
        drop(second);
        assert!(requests.lock().is_empty());
        assert_eq!(requests.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(requests.total.load(Ordering::Relaxed), 0);
    }
}
