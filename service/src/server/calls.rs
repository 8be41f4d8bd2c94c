//! The calls that a connection carries.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::timeout};

/// What a call is to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One that is answered, or a stream that ends by itself.
    Work,
    /// A stream that may go on for ever: health, reflection. No connection stays for its sake.
    Endless,
}

impl Kind {
    /// By the path of a call.
    pub(super) fn of(path: &str) -> Self {
        match path.starts_with("/keypool.v1.KeyPackageService/") {
            true => Self::Work,
            false => Self::Endless,
        }
    }
}

/// The calls that a connection carries now.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<watch::Sender<Counts>>);

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    all: usize,
    endless: usize,
}

impl Calls {
    /// Counts a call until the answer of this is dropped.
    pub(super) fn begin(&self, kind: Kind) -> Call {
        self.0.send_modify(|counts| {
            counts.all += 1;
            counts.endless += usize::from(kind == Kind::Endless);
        });
        Call { calls: self.clone(), kind }
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
        let mut counts = self.0.subscribe();
        // `self` keeps the sender: no wait fails.
        while counts.wait_for(&quiet).await.is_ok() {
            if timeout(time, counts.wait_for(|counts| !quiet(counts))).await.is_err() {
                return;
            }
        }
    }
}

/// One call, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    calls: Calls,
    kind: Kind,
}

impl Call {
    /// Counts the call until the last of its answer was sent.
    pub(super) fn until_sent<B>(self, body: B) -> Counted<B> {
        Counted { body, _call: self }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let endless = usize::from(self.kind == Kind::Endless);
        self.calls.0.send_modify(|counts| {
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
