use bytes::Bytes;
use openmls::prelude::MlsGroup;

use crate::{
    InvitationRecord, InvitationState, InviteError, Invites, ReservationRecord,
    journal::{Lost, Verb},
};

/// A Commit of which it is not known whether it was accepted, from before a crash.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenCommit {
    /// The group.
    pub group_id: Bytes,
    /// The group's epoch that the Commit starts from (RFC 9420, section 8.1).
    pub epoch: u64,
    reservations: Vec<ReservationRecord>,
}

/// What became of a Commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It was accepted: its packages are used.
    Accepted,
    /// It was not, and never will be.
    Rejected,
    /// It is not known yet: it stays in the journal.
    Unknown,
}

/// What [`Invites::recover`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// How many reservations were spent.
    pub spent: usize,
    /// How many were released.
    pub released: usize,
    /// Those that were used, but had lapsed, their package gone.
    pub lost: Vec<Lost>,
    /// How many invitations stay in the journal.
    pub unknown: usize,
}

impl OpenCommit {
    /// What a member of the group can tell, once it has processed all messages there are.
    /// [`CommitOutcome::Unknown`] while it holds the Commit as its pending one: send it again, or
    /// clear it.
    pub fn outcome_in(&self, group: &MlsGroup) -> CommitOutcome {
        let epoch = group.epoch().as_u64();
        if epoch <= self.epoch && group.pending_commit().is_some() {
            return CommitOutcome::Unknown;
        }
        let added = |key: &[u8]| self.reservations.iter().any(|it| it.encryption_key == key);
        if epoch > self.epoch && group.members().any(|member| added(&member.encryption_key)) {
            CommitOutcome::Accepted
        } else {
            CommitOutcome::Rejected
        }
    }
}

impl Invites {
    /// Settles what earlier runs left in the journal, and what failed in this one. Call it when
    /// the application starts and its groups are up to date, and later while something stays
    /// unknown. Invitations that this process still holds are left alone.
    ///
    /// A reservation that no Commit was made with is released. Of a Commit, `outcome` says what
    /// became of it; [`OpenCommit::outcome_in`] is how a member sees it.
    ///
    /// # Errors
    /// When the server cannot be reached or the journal not be read or written. What was not
    /// settled stays in the journal.
    pub async fn recover<F, Fut>(&self, mut outcome: F) -> Result<Recovery, InviteError>
    where
        F: FnMut(OpenCommit) -> Fut,
        Fut: Future<Output = CommitOutcome>,
    {
        let left_over = LeftOver { invites: self, records: self.journal.left_over()? };
        let mut recovery = Recovery::default();
        for record in &left_over.records {
            let spend = match record.state {
                InvitationState::Spending => true,
                InvitationState::CommitPending { epoch } => {
                    let commit = OpenCommit {
                        group_id: record.group_id.clone(),
                        epoch,
                        reservations: record.reservations.clone(),
                    };
                    match outcome(commit).await {
                        CommitOutcome::Accepted => true,
                        CommitOutcome::Rejected => false,
                        CommitOutcome::Unknown => {
                            recovery.unknown += 1;
                            continue;
                        }
                    }
                }
                InvitationState::Reserving
                | InvitationState::Reserved
                | InvitationState::Releasing => false,
            };
            let mut record = record.clone();
            if spend {
                self.journal.advance(&mut record, InvitationState::Spending)?;
                let (spent, lost) = self.journal.settle(Verb::Spend, record).await?;
                recovery.spent += spent;
                recovery.lost.extend(lost);
            } else {
                recovery.released += self.journal.undo(record).await?;
            }
        }
        Ok(recovery)
    }
}

/// Entries that a recovery works on. Those that it does not end are left to the next one.
struct LeftOver<'a> {
    invites: &'a Invites,
    records: Vec<InvitationRecord>,
}

impl Drop for LeftOver<'_> {
    fn drop(&mut self) {
        for record in &self.records {
            self.invites.journal.let_go(record.invitation_id);
        }
    }
}
