//! The calls that a connection carries.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep};

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

/// The calls that a connection carries now. A call that begins or ends wakes nobody: whoever asks
/// looks again when the time has passed.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    all: usize,
    endless: usize,
    /// When the last call ended, and the last one of those that a connection stays for.
    last_call: Instant,
    last_work: Instant,
}

impl Default for Counts {
    fn default() -> Self {
        let now = Instant::now();
        Self { all: 0, endless: 0, last_call: now, last_work: now }
    }
}

impl Counts {
    fn begin(&mut self, kind: Kind) {
        self.all += 1;
        self.endless += usize::from(kind == Kind::Endless);
    }

    fn end(&mut self, kind: Kind, now: Instant) {
        self.all -= 1;
        self.last_call = now;
        match kind {
            Kind::Work => self.last_work = now,
            Kind::Endless => self.endless -= 1,
        }
    }

    /// Since when there has been no call; none if there is one.
    fn idle_since(&self) -> Option<Instant> {
        (self.all == 0).then_some(self.last_call)
    }

    /// Since when there has been no call that a connection stays for; none if there is one.
    fn workless_since(&self) -> Option<Instant> {
        (self.all == self.endless).then_some(self.last_work)
    }
}

impl Calls {
    /// Counts a call until the answer of this is dropped.
    pub(super) fn begin(&self, kind: Kind) -> Call {
        self.lock().begin(kind);
        Call { calls: self.clone(), kind }
    }

    /// Returns once there was no call for this long.
    pub(super) async fn none_for(&self, time: Duration) {
        self.is_for(time, Counts::idle_since).await;
    }

    /// Returns once there was no call for this long that a connection stays for.
    pub(super) async fn no_work_for(&self, time: Duration) {
        self.is_for(time, Counts::workless_since).await;
    }

    async fn is_for(&self, time: Duration, since: impl Fn(&Counts) -> Option<Instant>) {
        let asked = Instant::now();
        loop {
            let since = since(&self.lock());
            match missing(time, asked, since, Instant::now()) {
                Duration::ZERO => return,
                missing => sleep(missing).await,
            }
        }
    }

    /// Each change of the counts is one call, so a panic elsewhere leaves them whole.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is missing at least until it has been quiet for so long, since somebody asked: `since`
/// when it has been, none if it is not now.
fn missing(time: Duration, asked: Instant, since: Option<Instant>, now: Instant) -> Duration {
    let quiet = since.map_or(Duration::ZERO, |since| now - since.max(asked));
    time.saturating_sub(quiet)
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
        self.calls.lock().end(self.kind, Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(60);

    #[test]
    fn quiet_counts_from_the_end_of_the_last_call() {
        let mut counts = Counts::default();
        let asked = Instant::now();
        let missing_at = |counts: &Counts, seconds| {
            let now = asked + Duration::from_secs(seconds);
            missing(TIME, asked, counts.idle_since(), now).as_secs()
        };
        assert_eq!(missing_at(&counts, 10), 50);
        counts.begin(Kind::Work);
        assert_eq!(missing_at(&counts, 30), 60);
        counts.end(Kind::Work, asked + Duration::from_secs(40));
        assert_eq!(missing_at(&counts, 60), 40);
        // One that nobody saw while it was there.
        counts.begin(Kind::Endless);
        counts.end(Kind::Endless, asked + Duration::from_secs(90));
        assert_eq!(missing_at(&counts, 100), 50);
        assert_eq!(missing_at(&counts, 149), 1);
        assert_eq!(missing_at(&counts, 150), 0);
        assert_eq!(missing_at(&counts, 1000), 0);
    }

    #[test]
    fn no_connection_stays_for_an_endless_stream() {
        let mut counts = Counts::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        counts.begin(Kind::Endless);
        counts.begin(Kind::Work);
        assert_eq!(missing(TIME, began, counts.workless_since(), at(10)), TIME);
        counts.end(Kind::Work, at(20));
        assert_eq!(missing(TIME, began, counts.workless_since(), at(80)), Duration::ZERO);
        assert_eq!(missing(TIME, began, counts.idle_since(), at(80)), TIME, "the stream is a call");
        // However long it has been quiet already.
        assert_eq!(missing(TIME, at(80), counts.workless_since(), at(80)), TIME);
    }

    #[tokio::test]
    async fn who_asks_is_answered_once_it_is_quiet() {
        let calls = Calls::default();
        let call = calls.begin(Kind::Work);
        let began = Instant::now();
        let quiet = Duration::from_millis(20);
        let mut idle = std::pin::pin!(calls.none_for(quiet));
        let early = tokio::time::timeout(quiet * 2, idle.as_mut()).await;
        assert!(early.is_err(), "there is a call");
        drop(call);
        idle.await;
        assert!(began.elapsed() >= quiet * 3);
    }
}
