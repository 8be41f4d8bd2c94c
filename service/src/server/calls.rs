//! How many calls a connection carries.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::timeout};

/// The number of calls that a connection carries now.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<watch::Sender<usize>>);

impl Calls {
    /// Counts a call until the answer of this is dropped.
    pub(super) fn begin(&self) -> Call {
        self.0.send_modify(|calls| *calls += 1);
        Call(self.clone())
    }

    /// Returns once there was no call for this long.
    pub(super) async fn none_for(&self, time: Duration) {
        let mut calls = self.0.subscribe();
        // `self` keeps the sender: neither wait fails.
        while calls.wait_for(|calls| *calls == 0).await.is_ok() {
            if timeout(time, calls.changed()).await.is_err() {
                return;
            }
        }
    }
}

/// One call, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Call(Calls);

impl Call {
    /// Counts the call until the last of its answer was sent.
    pub(super) fn until_sent<B>(self, body: B) -> Counted<B> {
        Counted { body, _call: self }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|calls| *calls -= 1);
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
