//! What clients do all the while: devices that keep their pools full, and adders.

use std::{collections::VecDeque, time::Duration};

use rand::{RngExt as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    history::Answer,
    packages::{Made, Maker},
    party::{Held, Party, Wish},
};

/// When a device fills its pool up again, and to how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stock {
    pub(crate) low: i64,
    pub(crate) full: usize,
}

impl Stock {
    /// There is always something that was never issued.
    pub(crate) const AMPLE: Self = Self { low: 60, full: 100 };
    /// What came back is issued again before there is more.
    pub(crate) const SCARCE: Self = Self { low: 14, full: 40 };
}

/// So many go into one upload.
const BATCH: usize = 25;
/// So many of its latest packages a device remembers, to upload or revoke them again.
const REMEMBERED: usize = 400;
/// So many reservations an adder leaves open.
const KEPT: usize = 12;
/// After a failure, before the next call.
const BREATH: Duration = Duration::from_millis(50);

/// Devices with pools of their own, kept by one worker.
pub(crate) struct Devices {
    pub(crate) devices: Vec<Device>,
    pub(crate) rng: StdRng,
}

/// One of them.
pub(crate) struct Device {
    pub(crate) party: Party,
    pub(crate) maker: Maker,
    pub(crate) last_resort: bool,
    pub(crate) stock: Stock,
    pub(crate) latest: VecDeque<Made>,
}

impl Devices {
    pub(crate) async fn work(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        for device in &mut self.devices {
            if device.last_resort {
                let package = device.maker.make(true, &mut self.rng);
                device.upload(&[package]).await?;
            }
        }
        while !stop.is_cancelled() {
            for device in &mut self.devices {
                device.tend(&mut self.rng).await?;
                if stop.is_cancelled() {
                    break;
                }
            }
            sleep(Duration::from_millis(self.rng.random_range(5..40))).await;
        }
        Ok(())
    }
}

impl Device {
    async fn tend(&mut self, rng: &mut StdRng) -> anyhow::Result<()> {
        let Answer::Status(counts) = self.party.status().await? else {
            sleep(BREATH).await;
            return Ok(());
        };
        let mut missing = if counts.available <= self.stock.low {
            self.stock.full.saturating_sub(usize::try_from(counts.available + counts.reserved)?)
        } else {
            0
        };
        while missing > 0 {
            let packages: Vec<_> =
                (0..missing.min(BATCH)).map(|_| self.maker.make(false, rng)).collect();
            missing -= packages.len();
            self.upload(&packages).await?;
        }
        if rng.random_ratio(1, 8) {
            // What was used is refused, what is there is there.
            let again: Vec<_> = self.latest.iter().sample(rng, 6).into_iter().cloned().collect();
            if !again.is_empty() {
                self.party.upload(&again).await?;
            }
        }
        if rng.random_ratio(1, 20) {
            let refs = self.latest.iter().sample(rng, 2);
            let refs: Vec<_> = refs.into_iter().map(|made| made.offered.reference).collect();
            if !refs.is_empty() {
                self.party.revoke(refs).await?;
            }
        }
        if self.last_resort && rng.random_ratio(1, 200) {
            let package = self.maker.make(true, rng);
            self.upload(&[package]).await?;
        }
        Ok(())
    }

    /// Uploads until it is known that they are there, as a device does.
    async fn upload(&mut self, packages: &[Made]) -> anyhow::Result<()> {
        for _ in 0..3 {
            match self.party.upload(packages).await? {
                Answer::Uploaded(stored) => {
                    for (package, stored) in packages.iter().zip(stored) {
                        let accepted = stored.is_accepted();
                        if accepted && !package.offered.last_resort {
                            self.latest.push_back(package.clone());
                        }
                    }
                    while self.latest.len() > REMEMBERED {
                        self.latest.pop_front();
                    }
                    return Ok(());
                }
                _ => sleep(BREATH).await,
            }
        }
        Ok(())
    }
}

/// Somebody who adds clients to groups.
pub(crate) struct Adder {
    /// Under these names, each with a share of its own.
    pub(crate) parties: Vec<Party>,
    pub(crate) pools: Vec<u16>,
    pub(crate) rng: StdRng,
    pub(crate) kept: VecDeque<Kept>,
}

/// Reservations that were left open.
pub(crate) struct Kept {
    party: usize,
    wish: Wish,
    held: Vec<Held>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Spend,
    Release,
}

impl Adder {
    pub(crate) async fn work(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if self.kept.len() > KEPT || (!self.kept.is_empty() && self.rng.random_ratio(1, 5)) {
                self.come_back().await?;
            }
            self.add().await?;
        }
        Ok(())
    }

    async fn add(&mut self) -> anyhow::Result<()> {
        let party = self.rng.random_range(0..self.parties.len());
        let most = self.pools.len().min(4);
        let count = if self.rng.random_ratio(1, 8) { self.rng.random_range(1..=most) } else { 1 };
        let wish = Wish {
            request: Uuid::from_u128(self.rng.random()),
            group: self.rng.random_range(0..64),
            ttl: Duration::from_millis(
                *[1200, 2500, 6000].iter().choose(&mut self.rng).expect("one"),
            ),
            all: count > 1 && self.rng.random_ratio(1, 2),
            pools: self.pools.iter().copied().sample(&mut self.rng, count),
        };
        let Some(held) = self.reserve(party, &wish).await? else { return Ok(()) };
        if self.rng.random_ratio(1, 16) {
            self.parties[party].reserve(&wish).await?;
        }
        match self.rng.random_range(0..10) {
            0..5 => self.settle(party, &wish, &held, End::Spend).await,
            5..8 => self.settle(party, &wish, &held, End::Release).await,
            _ => {
                self.kept.push_back(Kept { party, wish, held });
                Ok(())
            }
        }
    }

    /// Reserves, and asks again when nobody knows what came of it. `None` when there is nothing.
    async fn reserve(&mut self, party: usize, wish: &Wish) -> anyhow::Result<Option<Vec<Held>>> {
        for _ in 0..3 {
            let (answer, held) = self.parties[party].reserve(wish).await?;
            match answer {
                Answer::Reserved(_) if !held.is_empty() => return Ok(Some(held)),
                Answer::Reserved(_) | Answer::Refused(_) => {
                    sleep(BREATH / 5).await;
                    return Ok(None);
                }
                _ => sleep(BREATH).await,
            }
            if self.rng.random_ratio(1, 4) {
                break;
            }
        }
        Ok(None)
    }

    async fn settle(
        &mut self,
        party: usize,
        wish: &Wish,
        held: &[Held],
        end: End,
    ) -> anyhow::Result<()> {
        let party = self.parties[party].clone();
        for _ in 0..3 {
            let answer = match end {
                End::Spend => party.spend(wish.group, held).await?,
                End::Release => party.release(held).await?,
            };
            match answer {
                Answer::Unknown(_) | Answer::Internal(_) if self.rng.random_ratio(4, 5) => {
                    sleep(BREATH).await;
                }
                // Once more, to no effect.
                _ if self.rng.random_ratio(1, 12) => {}
                _ => break,
            }
        }
        match self.rng.random_range(0..40) {
            0 => drop(party.spend(wish.group, held).await?),
            1 => drop(party.release(held).await?),
            2 => drop(party.reserve(wish).await?),
            _ => {}
        }
        Ok(())
    }

    /// Returns to what was left open, perhaps too late.
    async fn come_back(&mut self) -> anyhow::Result<()> {
        let at = self.rng.random_range(0..self.kept.len());
        let Some(Kept { party, wish, held }) = self.kept.remove(at) else { return Ok(()) };
        match self.rng.random_range(0..10) {
            0..5 => self.settle(party, &wish, &held, End::Spend).await,
            5..7 => self.settle(party, &wish, &held, End::Release).await,
            7..9 => {
                self.parties[party].reserve(&wish).await?;
                self.kept.push_back(Kept { party, wish, held });
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
