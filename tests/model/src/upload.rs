//! What the owner does: Upload and Revoke.

use std::collections::BTreeSet;

use crate::{
    pool::{LastResort, Package, Pool, State, Suite, Time},
    rules::{Bug, Rules},
};

/// A package as its owner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// By its place.
    Package(usize),
    /// By its place.
    LastResort(usize),
}

/// That a package is in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uploaded {
    /// Which it is.
    pub item: Item,
    /// Whether it was there already.
    pub already: bool,
}

/// Why a package is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Its lifetime is over.
    Lifetime,
    /// It was in the pool, and is not any more.
    AlreadyUsed,
    /// There are as many as there may be.
    PoolFull,
}

/// How many packages were revoked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Revoked {
    /// That nobody held.
    pub available: u32,
    /// That end with their reservation.
    pub reserved: u32,
    /// Of last resort.
    pub last_resort: u32,
}

impl Pool {
    /// Adds a new one-time package.
    ///
    /// # Errors
    /// Why not.
    pub fn upload(
        &mut self,
        rules: &Rules,
        suite: Suite,
        not_after: Time,
    ) -> Result<Uploaded, Refused> {
        if not_after <= self.now {
            return Err(Refused::Lifetime);
        }
        self.expire();
        let live = self.packages.iter().filter(|package| {
            let live = match package.state {
                State::Available | State::Lapsed(_) => true,
                State::Reserved { revoked, .. } => !revoked,
                _ => false,
            };
            live && package.suite == suite
        });
        if live.count() >= rules.hard_cap {
            return Err(Refused::PoolFull);
        }
        let state = State::Available;
        self.packages.push(Package { suite, not_after, generation: 0, state });
        Ok(Uploaded { item: Item::Package(self.packages.len() - 1), already: false })
    }

    /// Adds a new last resort package, in place of the one of the same cipher suite.
    ///
    /// # Errors
    /// Why not.
    pub fn upload_last_resort(
        &mut self,
        suite: Suite,
        not_after: Time,
    ) -> Result<Uploaded, Refused> {
        if not_after <= self.now {
            return Err(Refused::Lifetime);
        }
        self.expire();
        for other in self.last_resorts.iter_mut().filter(|other| other.suite == suite) {
            other.live = false;
        }
        self.last_resorts.push(LastResort { suite, not_after, live: true });
        Ok(Uploaded { item: Item::LastResort(self.last_resorts.len() - 1), already: false })
    }

    /// Uploads once more what was uploaded before.
    ///
    /// # Errors
    /// Why it is not in the pool.
    pub fn upload_again(&mut self, rules: &Rules, item: Item) -> Result<Uploaded, Refused> {
        let not_after = match item {
            Item::Package(at) => self.packages[at].not_after,
            Item::LastResort(at) => self.last_resorts[at].not_after,
        };
        if not_after <= self.now {
            return Err(Refused::Lifetime);
        }
        self.expire();
        let live = match item {
            Item::LastResort(at) => self.last_resorts[at].live,
            Item::Package(at) => match &mut self.packages[at].state {
                State::Available | State::Lapsed(_) => true,
                State::Reserved { revoked, .. } => !*revoked,
                state if rules.has(Bug::UploadsWhatEnded) => {
                    *state = State::Available;
                    true
                }
                _ => false,
            },
        };
        if live { Ok(Uploaded { item, already: true }) } else { Err(Refused::AlreadyUsed) }
    }

    /// Revokes these packages, or all. What somebody holds stays theirs until the reservation
    /// ends.
    pub fn revoke(&mut self, rules: &Rules, only: Option<&BTreeSet<Item>>) -> Revoked {
        let chosen = |item| only.is_none_or(|only| only.contains(&item));
        let mut done = Revoked::default();
        for (at, package) in self.packages.iter_mut().enumerate() {
            if !chosen(Item::Package(at)) {
                continue;
            }
            match &mut package.state {
                State::Reserved { revoked: true, .. } => {}
                State::Reserved { by, revoked }
                    if by.expires_at > self.now && !rules.has(Bug::RevokesWhatIsHeld) =>
                {
                    *revoked = true;
                    done.reserved += 1;
                }
                state @ (State::Available | State::Lapsed(_) | State::Reserved { .. }) => {
                    *state = State::Revoked;
                    done.available += 1;
                }
                _ => {}
            }
        }
        for (at, last_resort) in self.last_resorts.iter_mut().enumerate() {
            if last_resort.live && chosen(Item::LastResort(at)) {
                last_resort.live = false;
                done.last_resort += 1;
            }
        }
        done
    }
}
