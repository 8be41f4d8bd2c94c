//! What time ends.

use crate::{
    pool::{GrantState, Pool, State},
    rules::{Bug, Lapse, Rules},
};

impl Pool {
    /// Ends all that is due: what lapsed, what expired, what is to be forgotten.
    pub fn sweep(&mut self, rules: &Rules) {
        self.lapse(rules);
        self.expire();
        self.forget(rules);
    }

    fn lapse(&mut self, rules: &Rules) {
        if rules.has(Bug::NeverLapses) {
            return;
        }
        let grace = u32::from(rules.has(Bug::LapsesTooEarly));
        for package in &mut self.packages {
            let State::Reserved { by, revoked } = &package.state else { continue };
            if by.expires_at > self.now + grace {
                continue;
            }
            package.state = match rules.lapse {
                _ if *revoked && !rules.has(Bug::ForgetsRevocation) => State::Revoked,
                Lapse::Return => State::Lapsed(by.holder),
                Lapse::Burn if rules.has(Bug::LapsesWhatIsToBurn) => State::Lapsed(by.holder),
                Lapse::Burn => State::Burned(by.holder),
            };
        }
    }

    /// An upload does this too.
    pub(crate) fn expire(&mut self) {
        for package in &mut self.packages {
            let live = matches!(
                package.state,
                State::Available | State::Lapsed(_) | State::Reserved { .. }
            );
            if live && package.not_after <= self.now {
                package.state = State::Expired;
            }
        }
    }

    fn forget(&mut self, rules: &Rules) {
        for package in &mut self.packages {
            if matches!(package.state, State::Spent(_)) && rules.has(Bug::SweepsBackWhatWasSpent) {
                package.state = State::Available;
            }
            let ended = matches!(
                package.state,
                State::Spent(_) | State::Burned(_) | State::Revoked | State::Expired
            );
            if ended && package.not_after + rules.retention <= self.now {
                package.state = State::Forgotten;
            }
        }
        for last_resort in &mut self.last_resorts {
            last_resort.live &= last_resort.not_after > self.now;
        }
        for grant in &mut self.grants {
            if grant.by.expires_at + rules.retention <= self.now {
                grant.state = GrantState::Forgotten;
            }
        }
    }
}
