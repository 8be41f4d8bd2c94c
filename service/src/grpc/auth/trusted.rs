//! The keys that are trusted now: those of files, and those that an issuer publishes.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::Header;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    jwks::Jwks,
    keys::{KeySet, VerifyingKey, read_files},
};
use crate::{
    config::{AuthSection, JwksSection},
    metrics::metrics,
};

/// The keys of one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Current {
    /// Another number, other keys.
    pub(super) generation: u64,
    of_files: Vec<VerifyingKey>,
    fetched: Vec<VerifyingKey>,
    /// Fetched keys are trusted until then. None where there are none to fetch.
    fetched_until: Option<Instant>,
}

impl Current {
    /// Whether keys are missing that could not be fetched.
    pub(super) fn is_outdated(&self) -> bool {
        self.fetched_until.is_some_and(|until| until <= Instant::now())
    }

    /// The keys that may have signed a token with this header.
    pub(super) fn candidates(&self, header: &Header) -> impl Iterator<Item = &VerifyingKey> {
        let fetched = if self.is_outdated() { &[][..] } else { &self.fetched };
        self.of_files.iter().chain(fetched).filter(move |key| key.fits(header))
    }
}

/// When keys were fetched, or tried to be.
#[derive(Debug, Clone, Default)]
struct Attempts {
    finished: u64,
    is_under_way: bool,
    last_began: Option<Instant>,
}

/// Trusted keys over time.
#[derive(Debug)]
pub(super) struct TrustedKeys {
    files: Vec<PathBuf>,
    reload_interval: Duration,
    published: Option<(JwksSection, Jwks)>,
    current: watch::Sender<Arc<Current>>,
    attempts: watch::Sender<Attempts>,
    wanted: Notify,
}

impl TrustedKeys {
    /// These for ever.
    pub(super) fn fixed(keys: KeySet) -> Self {
        let current = Current { of_files: keys.into_keys(), ..Current::default() };
        Self {
            files: Vec::new(),
            reload_interval: Duration::MAX,
            published: None,
            current: watch::Sender::new(Arc::new(current)),
            attempts: watch::Sender::default(),
            wanted: Notify::new(),
        }
    }

    /// Reads the files; nothing is fetched yet.
    pub(super) fn load(section: &AuthSection) -> anyhow::Result<Self> {
        let of_files = match section.keys.is_empty() {
            true => Vec::new(),
            false => KeySet::load(&section.keys)?.into_keys(),
        };
        let published = section.jwks.clone();
        let published = published.map(|it| Ok::<_, anyhow::Error>((it.clone(), Jwks::new(&it)?)));
        let published = published.transpose()?;
        let fetched_until = published.is_some().then(Instant::now);
        let current = Current { of_files, fetched_until, ..Current::default() };
        Ok(Self {
            files: section.keys.clone(),
            reload_interval: section.reload_interval,
            published,
            current: watch::Sender::new(Arc::new(current)),
            attempts: watch::Sender::default(),
            wanted: Notify::new(),
        })
    }

    pub(super) fn current(&self) -> Arc<Current> {
        self.current.borrow().clone()
    }

    /// Has the keys fetched once more, unless that was tried a moment ago, and returns when it is
    /// done. All who ask meanwhile share one attempt. Whether there was one.
    pub(super) async fn refreshed(&self) -> bool {
        let Some((section, _)) = &self.published else { return false };
        let mut attempts = self.attempts.subscribe();
        let seen = attempts.borrow_and_update().clone();
        if !seen.is_under_way {
            if seen.tried_within(section.min_refresh_interval) {
                return false;
            }
            self.wanted.notify_one();
        }
        // The sender is here: this does not fail.
        attempts.wait_for(|now| now.finished > seen.finished).await.is_ok()
    }

    /// Keeps the keys current until told to stop.
    pub(super) async fn keep(&self, stop: CancellationToken) {
        let both = async { tokio::join!(self.keep_files(), self.keep_published()) };
        stop.run_until_cancelled(both).await;
    }

    async fn keep_files(&self) {
        if self.files.is_empty() {
            return;
        }
        // What was read last, usable or not.
        let mut seen = read_files(&self.files).ok();
        loop {
            tokio::time::sleep(self.reload_interval).await;
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || read_files(&files)).await else {
                return;
            };
            let texts = read.as_ref().ok();
            if texts == seen.as_ref() {
                continue;
            }
            seen = texts.cloned();
            match read.and_then(|texts| KeySet::from_texts(&texts)) {
                Ok(keys) => {
                    self.change(|current| {
                        current.generation += 1;
                        current.of_files = keys.into_keys();
                    });
                    tracing::info!("the key files were read again");
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the new key files cannot be used; the old keys stay in use"
                ),
            }
        }
    }

    async fn keep_published(&self) {
        let Some((section, jwks)) = &self.published else { return };
        let mut published = None;
        loop {
            let began = Instant::now();
            self.attempts.send_modify(|attempts| {
                attempts.is_under_way = true;
                attempts.last_began = Some(began);
            });
            let fetched = match jwks.fetch().await {
                // As before: what was verified stays so.
                Ok(text) if published.as_ref() == Some(&text) => Ok(None),
                Ok(text) => KeySet::from_jwks(&text).map(|keys| {
                    published = Some(text);
                    Some(keys.into_keys())
                }),
                Err(error) => Err(error),
            };
            let next = match fetched {
                Ok(keys) => {
                    self.renew(keys, began + section.max_age);
                    section.refresh_interval
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the keys of tokens could not be fetched");
                    section.min_refresh_interval
                }
            };
            self.attempts.send_modify(|attempts| {
                attempts.is_under_way = false;
                attempts.finished += 1;
            });
            let due = sleep_until(began + next);
            let asked = async {
                loop {
                    self.wanted.notified().await;
                    // Who asked as the last attempt began has its answer.
                    if !self.attempts.borrow().tried_within(section.min_refresh_interval) {
                        return;
                    }
                }
            };
            tokio::select! { () = due => {} () = asked => {} }
        }
    }

    /// Trusts the fetched keys, those before where there are no others, until then.
    fn renew(&self, keys: Option<Vec<VerifyingKey>>, until: Instant) {
        self.change(|current| {
            current.fetched_until = Some(until);
            if let Some(keys) = keys {
                current.generation += 1;
                current.fetched = keys;
                tracing::info!("new keys of tokens were fetched");
            }
        });
    }

    /// Sets the gauges of the keys.
    pub(super) fn measure(&self) {
        let current = self.current();
        let written = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).ok();
        let of_files = self.files.iter().filter_map(written).max();
        let of_files = of_files.map(|at: SystemTime| at.elapsed().unwrap_or_default());
        let fetched = self.published.as_ref().zip(current.fetched_until);
        // Keys are trusted for so long from when they were fetched. Those that never were are
        // as old as what is trusted no more.
        let fetched = fetched.map(|((section, _), until)| match current.fetched.is_empty() {
            true => section.max_age + until.elapsed(),
            false => (Instant::now() + section.max_age).duration_since(until),
        });
        for (source, age, keys) in
            [("files", of_files, current.of_files.len()), ("jwks", fetched, current.fetched.len())]
        {
            let Some(age) = age else { continue };
            let labels = [("source", source)];
            metrics().set("keypool_token_keys", &labels, keys as f64);
            metrics().set("keypool_token_keys_age_seconds", &labels, age.as_secs_f64());
        }
    }

    fn change(&self, change: impl FnOnce(&mut Current)) {
        self.current.send_modify(|current| change(Arc::make_mut(current)));
    }
}

impl Attempts {
    fn tried_within(&self, time: Duration) -> bool {
        self.last_began.is_some_and(|began| began.elapsed() < time)
    }
}
