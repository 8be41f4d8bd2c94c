//! Spend and Release.

use crate::{
    pool::{GrantState, Group, Id, Pool, State},
    rules::{Bug, Lapse, Rules},
};

/// That a reservation ended as its holder wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settled {
    /// Whether it had ended so before.
    pub already: bool,
}

/// Why a reservation does not end so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Somebody else got the package since, or it ended.
    Lost,
    /// It was released, or, where it is to be released, spent.
    NotHeld,
    /// It was made for another group.
    GroupMismatch,
}

const NOW: Result<Settled, Refusal> = Ok(Settled { already: false });
const BEFORE: Result<Settled, Refusal> = Ok(Settled { already: true });

impl Pool {
    /// Spends a reservation of the caller's.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn spend(&mut self, rules: &Rules, id: Id, group: Group) -> Result<Settled, Refusal> {
        let (at, generation) = match id {
            Id::Package(at, generation) => (at, generation),
            Id::Grant(at) => return self.settle_grant(at, GrantState::Spent, Some(group)),
        };
        let package = &mut self.packages[at];
        let since = package.generation != generation;
        if since && !rules.has(Bug::SpendsWhatWasIssuedSince) {
            return Err(Refusal::Lost);
        }
        let holder = match package.state {
            State::Available => return Err(Refusal::NotHeld),
            State::Revoked | State::Expired | State::Forgotten => return Err(Refusal::Lost),
            State::Reserved { by, .. } => by.holder,
            State::Lapsed(holder) | State::Burned(holder) | State::Spent(holder) => holder,
        };
        if holder.group != group && !since {
            return Err(Refusal::GroupMismatch);
        }
        if matches!(package.state, State::Spent(_)) {
            return if rules.has(Bug::ForgetsWhoSpent) { Err(Refusal::Lost) } else { BEFORE };
        }
        package.state = State::Spent(holder);
        NOW
    }

    /// Hands a reservation of the caller's back.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn release(&mut self, rules: &Rules, id: Id) -> Result<Settled, Refusal> {
        let (at, generation) = match id {
            Id::Package(at, generation) => (at, generation),
            Id::Grant(at) => return self.settle_grant(at, GrantState::Released, None),
        };
        let package = &mut self.packages[at];
        if package.generation != generation {
            return BEFORE;
        }
        match &package.state {
            // What is about to burn does not come back.
            State::Reserved { by, .. }
                if rules.lapse == Lapse::Burn && by.expires_at <= self.now =>
            {
                BEFORE
            }
            State::Reserved { revoked, .. } => {
                package.state = if *revoked { State::Revoked } else { State::Available };
                NOW
            }
            State::Spent(_) if rules.has(Bug::ReleasesWhatWasSpent) => {
                package.state = State::Available;
                NOW
            }
            State::Spent(_) => Err(Refusal::NotHeld),
            _ => BEFORE,
        }
    }

    fn settle_grant(
        &mut self,
        at: usize,
        end: GrantState,
        group: Option<Group>,
    ) -> Result<Settled, Refusal> {
        let grant = &mut self.grants[at];
        match grant.state {
            GrantState::Forgotten if end == GrantState::Released => BEFORE,
            GrantState::Forgotten => Err(Refusal::Lost),
            _ if group.is_some_and(|group| group != grant.by.holder.group) => {
                Err(Refusal::GroupMismatch)
            }
            state if state == end => BEFORE,
            GrantState::Reserved => {
                grant.state = end;
                NOW
            }
            _ => Err(Refusal::NotHeld),
        }
    }
}
