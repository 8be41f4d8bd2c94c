//! A pool, and Reserve.

use std::collections::BTreeMap;

use crate::rules::{Bug, Lapse, Rules};

/// Seconds since some start.
pub type Time = u32;
/// Who reserves.
pub type Adder = u8;
/// For which group.
pub type Group = u8;
/// Of which cipher suite.
pub type Suite = u8;
/// By which a repeated Reserve is recognised.
pub type Request = u16;

/// One client's pool. Nothing is ever removed from it: packages and grants are known by their
/// place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pool {
    /// The time.
    pub now: Time,
    /// The one-time packages in the order of their upload.
    pub packages: Vec<Package>,
    /// The last resort packages in the order of their upload.
    pub last_resorts: Vec<LastResort>,
    /// Reservations of last resort packages.
    pub grants: Vec<Grant>,
    /// When each adder last drew a one-time package; kept where there is a fair share.
    pub drawn: BTreeMap<Adder, Time>,
}

/// A one-time package.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Package {
    /// Its cipher suite.
    pub suite: Suite,
    /// The end of its lifetime.
    pub not_after: Time,
    /// How often it was reserved.
    pub generation: u8,
    /// Where it stands.
    pub state: State,
}

/// Where a package stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// It was never issued, or came back by a Release.
    Available,
    /// It came back by a lapse: whoever held it may still spend it.
    Lapsed(Holder),
    /// Somebody's, until the reservation ends.
    Reserved {
        /// Whose.
        by: Reservation,
        /// Whether it is not to come back.
        revoked: bool,
    },
    /// Terminal.
    Spent(Holder),
    /// Terminal, save for a late Spend.
    Burned(Holder),
    /// Terminal.
    Revoked,
    /// Terminal.
    Expired,
    /// It ended so long ago that nothing is known of it.
    Forgotten,
}

/// Who has a package, or had it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Who.
    pub adder: Adder,
    /// For which group.
    pub group: Group,
}

/// A reservation that is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reservation {
    /// Whose.
    pub holder: Holder,
    /// By which call.
    pub request: Request,
    /// Until when.
    pub expires_at: Time,
}

/// A last resort package.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LastResort {
    /// Its cipher suite.
    pub suite: Suite,
    /// The end of its lifetime.
    pub not_after: Time,
    /// Whether it is neither replaced, nor revoked, nor expired.
    pub live: bool,
}

/// A reservation of a last resort package.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Which of the last resort packages.
    pub last_resort: usize,
    /// Whose.
    pub by: Reservation,
    /// Where it stands.
    pub state: GrantState,
}

/// Where a grant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrantState {
    /// Not settled.
    Reserved,
    /// Its Spend was recorded.
    Spent,
    /// Handed back.
    Released,
    /// It ended so long ago that nothing is known of it.
    Forgotten,
}

/// Names a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// Of a one-time package: which one, and the how-manieth reservation of it.
    Package(usize, u8),
    /// Of a last resort package.
    Grant(usize),
}

/// A Reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Who reserves.
    pub adder: Adder,
    /// By which a repeated call is recognised.
    pub request: Request,
    /// For which group.
    pub group: Group,
    /// Of which cipher suite.
    pub suite: Suite,
    /// For how long.
    pub ttl: Time,
    /// Whether a last resort package will do.
    pub last_resort: bool,
}

/// What a Reserve got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reserved {
    /// Names the reservation.
    pub id: Id,
    /// Until when it lives.
    pub expires_at: Time,
    /// Whether an earlier call had made it.
    pub again: bool,
}

/// Why a Reserve got nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unavailable {
    /// Nothing is left for this adder.
    Exhausted,
    /// The pool never had this cipher suite, and has something of another.
    Incompatible,
    /// The adder holds its share.
    Quota,
    /// The same request was for another group or cipher suite.
    RequestIdReused,
}

impl Pool {
    /// Lets time pass.
    pub fn pass(&mut self, time: Time) {
        self.now += time;
    }

    /// The live reservations of an adder, and whether the package of each can be given again: a last
    /// resort package that is gone cannot.
    fn open(&self, adder: Adder) -> impl Iterator<Item = (Id, Suite, &Reservation, bool)> {
        let packages = self.packages.iter().enumerate().filter_map(|(at, package)| {
            let State::Reserved { by, .. } = &package.state else { return None };
            Some((Id::Package(at, package.generation), package.suite, by, true))
        });
        let grants = self.grants.iter().enumerate().filter_map(|(at, grant)| {
            let of = &self.last_resorts[grant.last_resort];
            let held = grant.state == GrantState::Reserved;
            held.then_some((Id::Grant(at), of.suite, &grant.by, of.live))
        });
        let live = move |(_, _, by, _): &(_, _, &Reservation, _)| {
            by.holder.adder == adder && by.expires_at > self.now
        };
        packages.chain(grants).filter(live)
    }

    /// Whether a package can be issued.
    fn can_be_issued(&self, rules: &Rules, ask: &Ask, package: &Package) -> bool {
        let free = match &package.state {
            State::Available | State::Lapsed(_) => true,
            State::Reserved { by, revoked } => {
                let grace = Time::from(rules.has(Bug::LapsesTooEarly));
                let lapsed = by.expires_at <= self.now + grace;
                let returns = rules.lapse == Lapse::Return;
                (lapsed && returns && (!revoked || rules.has(Bug::ForgetsRevocation)))
                    || rules.has(Bug::TakesWhatIsHeld)
            }
            State::Burned(_) => rules.has(Bug::ReturnsWhatBurned),
            _ => false,
        };
        let usable = package.not_after >= self.now + rules.min_remaining
            || rules.has(Bug::IssuesWhatExpires);
        free && usable && package.suite == ask.suite
    }

    /// What could be issued, in the order of issue.
    fn stock(&self, rules: &Rules, ask: &Ask) -> Vec<usize> {
        let fits = |at: &usize| self.can_be_issued(rules, ask, &self.packages[*at]);
        let mut stock: Vec<usize> = (0..self.packages.len()).filter(fits).collect();
        stock.sort_by_key(|&at| {
            let package = &self.packages[at];
            let returned = (package.generation > 0) ^ rules.has(Bug::IssuesReturnedFirst);
            let age = match rules.has(Bug::IssuesYoungestFirst) {
                true => Time::MAX - package.not_after,
                false => package.not_after,
            };
            (returned, age, at)
        });
        stock
    }

    /// Reserves a package, the first in the order of issue.
    ///
    /// # Errors
    /// Why there is none. Nothing has changed then.
    pub fn reserve(&mut self, rules: &Rules, ask: &Ask) -> Result<Reserved, Unavailable> {
        self.reserve_any(rules, ask, None)
    }

    /// Reserves a package, and among those that could be issued this one: calls that run at once
    /// pass over what others are looking at.
    ///
    /// # Errors
    /// Why there is none. Nothing has changed then.
    pub fn reserve_any(
        &mut self,
        rules: &Rules,
        ask: &Ask,
        this: Option<usize>,
    ) -> Result<Reserved, Unavailable> {
        if self.packages.is_empty() && self.last_resorts.is_empty() {
            return Err(Unavailable::Exhausted);
        }
        let same = |(_, _, by, there): &(Id, Suite, &Reservation, bool)| {
            by.request == ask.request && *there
        };
        if !rules.has(Bug::IgnoresRequestId)
            && let Some((id, suite, by, _)) = self.open(ask.adder).find(same)
        {
            return match by.holder.group == ask.group && suite == ask.suite {
                true => Ok(Reserved { id, expires_at: by.expires_at, again: true }),
                false => Err(Unavailable::RequestIdReused),
            };
        }
        let mut spared = 0;
        if let Some(share) = rules.fair_share {
            let full = self.open(ask.adder).count() >= share.max_open;
            if full && !rules.has(Bug::IgnoresFairShare) {
                return Err(Unavailable::Quota);
            }
            let drew = self.drawn.get(&ask.adder);
            let lately = drew.is_some_and(|&at| at + share.newcomer_after > self.now);
            if lately && !rules.has(Bug::IgnoresNewcomers) {
                spared = share.spared;
            }
        }
        let expires_at = self.now + ask.ttl;
        let holder = Holder { adder: ask.adder, group: ask.group };
        let by = Reservation { holder, request: ask.request, expires_at };
        let stock = self.stock(rules, ask);
        let last_resort = self.last_resorts.iter().position(|l| {
            let usable = l.not_after >= self.now + rules.min_remaining;
            l.live && usable && l.suite == ask.suite
        });
        let last_resort = last_resort.filter(|_| ask.last_resort);
        let first = match this {
            Some(this) => stock.contains(&this).then_some(this),
            None => stock.first().copied(),
        };
        let rather = rules.has(Bug::IssuesLastResortFirst) && last_resort.is_some();
        if let Some(at) = first.filter(|_| stock.len() > spared && !rather) {
            if rules.fair_share.is_some() {
                self.drawn.insert(ask.adder, self.now);
            }
            let package = &mut self.packages[at];
            package.generation += 1;
            package.state = State::Reserved { by, revoked: false };
            return Ok(Reserved {
                id: Id::Package(at, package.generation),
                expires_at,
                again: false,
            });
        }
        if let Some(last_resort) = last_resort {
            self.grants.push(Grant { last_resort, by, state: GrantState::Reserved });
            return Ok(Reserved { id: Id::Grant(self.grants.len() - 1), expires_at, again: false });
        }
        let known = self.packages.iter().any(|package| package.suite == ask.suite)
            || self.last_resorts.iter().any(|l| l.suite == ask.suite);
        // A pool that has nothing at all is not told from one that never was.
        let elsewhere = self.packages.iter().any(|package| {
            self.can_be_issued(rules, &Ask { suite: package.suite, ..*ask }, package)
        }) || self
            .last_resorts
            .iter()
            .any(|l| l.live && l.not_after >= self.now + rules.min_remaining);
        Err(match known || !elsewhere {
            true => Unavailable::Exhausted,
            false => Unavailable::Incompatible,
        })
    }
}
