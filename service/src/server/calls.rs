//! The calls that a connection carries.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// What a call is to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One message, one answer.
    Unary,
    /// A stream that ends by itself.
    Watch,
    /// A stream that may go on for ever: health, reflection. No connection stays for its sake.
    Endless,
}

impl Kind {
    /// By the path of a call.
    pub(super) fn of(path: &str) -> Self {
        match path.strip_prefix("/keypool.v1.KeyPackageService/") {
            Some("WatchPoolStatus") => Self::Watch,
            Some(_) => Self::Unary,
            None => Self::Endless,
        }
    }
}

/// The calls that a connection carries now.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: watch::Sender<Counts>,
    /// The answers that are being sent, by when they were there, the oldest first.
    answers: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    all: usize,
    endless: usize,
}

impl Calls {
    /// Counts a call until the answer of this is dropped.
    pub(super) fn begin(&self, kind: Kind) -> Call {
        self.0.counts.send_modify(|counts| {
            counts.all += 1;
            counts.endless += usize::from(kind == Kind::Endless);
        });
        Call { calls: self.clone(), kind, answer: None }
    }

    /// Returns once there was no call for this long.
    pub(super) async fn none_for(&self, time: Duration) {
        self.is_for(time, |counts| counts.all == 0).await;
    }

    /// Returns once there was no call for this long that a connection stays for.
    pub(super) async fn no_work_for(&self, time: Duration) {
        self.is_for(time, |counts| counts.all == counts.endless).await;
    }

    async fn is_for(&self, time: Duration, quiet: impl Fn(&Counts) -> bool) {
        let mut counts = self.0.counts.subscribe();
        // `self` keeps the sender: no wait fails.
        while counts.wait_for(&quiet).await.is_ok() {
            if timeout(time, counts.wait_for(|counts| !quiet(counts))).await.is_err() {
                return;
            }
        }
    }

    /// Returns once the answer to a call was there for this long, or somewhat longer, and its
    /// caller did not take it.
    pub(super) async fn stuck_for(&self, time: Duration) {
        loop {
            sleep(time / 2).await;
            let oldest = self.answers().1.first_key_value().map(|(_, since)| *since);
            if oldest.is_some_and(|since| since.elapsed() >= time) {
                return;
            }
        }
    }

    /// Each change is one call, so a panic elsewhere leaves the map whole.
    fn answers(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    calls: Calls,
    kind: Kind,
    answer: Option<u64>,
}

impl Call {
    /// Counts the call until the last of its answer was sent.
    pub(super) fn until_sent<B>(mut self, body: B) -> Counted<B> {
        if self.kind == Kind::Unary {
            let mut answers = self.calls.answers();
            answers.0 += 1;
            let number = answers.0;
            answers.1.insert(number, Instant::now());
            drop(answers);
            self.answer = Some(number);
        }
        Counted { body, _call: self }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(number) = self.answer {
            self.calls.answers().1.remove(&number);
        }
        let endless = usize::from(self.kind == Kind::Endless);
        self.calls.0.counts.send_modify(|counts| {
            counts.all -= 1;
            counts.endless -= endless;
        });
    }
}

pin_project! {
    /// The body of an answer, and the call that it belongs to.
    pub(super) struct Counted<B> {
        #[pin]
        body: B,
        _call: Call,
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
