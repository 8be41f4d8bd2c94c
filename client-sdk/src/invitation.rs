use std::{fmt, sync::Arc, time::Duration, time::SystemTime};

use bytes::Bytes;
use openmls::{
    group::AddMembersError,
    prelude::{KeyPackage, MlsGroup, MlsMessageOut, group_info::GroupInfo},
    storage::OpenMlsProvider,
};
use openmls_traits::signatures::Signer;

use crate::{
    InvitationRecord, InvitationState, InviteError, Invitee, MetadataError, Missing,
    journal::{Journal, Lost, Verb},
};

/// Validated KeyPackages that are held for one Commit, and who gave none.
///
/// It has to be settled: [`spend`](Self::spend) it once the Commit was accepted,
/// [`release`](Self::release) it otherwise. One that is dropped is released in the background,
/// unless [`add_to`](Self::add_to) or [`committing`](Self::committing) was called: whether its Commit
/// was accepted is then asked by [`Invites::recover`](crate::Invites::recover). Until it is settled
/// the journal knows of it, so a crash loses nothing.
#[must_use = "an Invitation has to be spent or released"]
pub struct Invitation {
    journal: Arc<Journal>,
    group_id: Bytes,
    invitees: Vec<Invitee>,
    missing: Vec<Missing>,
    /// One for each Reserve that has something to settle.
    records: Vec<InvitationRecord>,
}

/// What became of spent reservations.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Settlement {
    /// How many are recorded as spent.
    pub spent: usize,
    /// Those that had lapsed, their package gone. Nothing is left to do for them: the Commit holds,
    /// though the package may be used twice.
    pub lost: Vec<Lost>,
}

/// What to send after [`Invitation::add_to`].
#[non_exhaustive]
pub struct AddMessages {
    /// For the Delivery Service, and through it the members: the Commit.
    pub commit: MlsMessageOut,
    /// For those who were added, once the Commit was accepted: the Welcome.
    pub welcome: MlsMessageOut,
    /// The GroupInfo, when the group's configuration asks for one.
    pub group_info: Option<GroupInfo>,
}

/// Why no Commit was made. The invitation is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError<StorageError: std::error::Error> {
    /// The packages were reserved for another group.
    #[error("the packages were reserved for another group")]
    OtherGroup,
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] MetadataError),
    /// OpenMLS made no Commit, for one because nobody could be invited.
    #[error("OpenMLS made no Commit: {0}")]
    Mls(#[source] AddMembersError<StorageError>),
}

impl Invitation {
    pub(crate) fn new(journal: Arc<Journal>, group_id: Bytes) -> Self {
        let (invitees, missing, records) = Default::default();
        Self { journal, group_id, invitees, missing, records }
    }

    pub(crate) fn track(&mut self, record: InvitationRecord) {
        self.records.push(record);
    }

    pub(crate) fn track_last(&mut self) -> Option<&mut InvitationRecord> {
        self.records.last_mut()
    }

    pub(crate) fn untrack_last(&mut self) -> Option<InvitationRecord> {
        self.records.pop()
    }

    pub(crate) fn extend(&mut self, invitees: Vec<Invitee>, missing: Vec<Missing>) {
        self.invitees.extend(invitees);
        self.missing.extend(missing);
    }

    pub(crate) fn take_missing(&mut self) -> Vec<Missing> {
        std::mem::take(&mut self.missing)
    }

    /// Who can be added.
    pub fn invitees(&self) -> &[Invitee] {
        &self.invitees
    }

    /// Who gave no package, and why.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// The packages of all [`invitees`](Self::invitees).
    pub fn key_packages(&self) -> impl Iterator<Item = &KeyPackage> {
        self.invitees.iter().map(|invitee| &invitee.key_package)
    }

    /// When the first reservation lapses; `None` when nothing is held. Spending later may still
    /// succeed, but until then nobody else gets a package of these.
    pub fn expires_at(&self) -> Option<SystemTime> {
        let first = self.records.iter().map(|record| record.expires_at).min()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(first))
    }

    /// Commits the addition of all [`invitees`](Self::invitees). Send the Commit; when it is
    /// accepted, merge it, send the Welcome, and [`spend`](Self::spend) this. When it is not,
    /// clear the pending commit and [`release`](Self::release) this.
    ///
    /// To make the Commit in a transaction of your own, in which you also store what is to be sent,
    /// call [`committing`](Self::committing) before the transaction begins: the journal may be in
    /// the same file, whose lock the transaction holds. This writes nothing to the journal then.
    ///
    /// # Errors
    /// [`AddError`]; nothing has changed then, save what `committing` noted.
    pub fn add_to<P: OpenMlsProvider>(
        &mut self,
        group: &mut MlsGroup,
        provider: &P,
        signer: &impl Signer,
    ) -> Result<AddMessages, AddError<P::StorageError>> {
        if group.group_id().as_slice() != self.group_id {
            return Err(AddError::OtherGroup);
        }
        let packages: Vec<_> = self.key_packages().cloned().collect();
        let state = InvitationState::CommitPending { epoch: group.epoch().as_u64() };
        let noted = self.records.iter().all(|record| record.state == state);
        // First, as after a crash a Commit that the journal does not know would be sent, and its
        // packages issued again.
        if !noted {
            self.advance(state)?;
        }
        match group.add_members(provider, signer, &packages) {
            Ok((commit, welcome, group_info)) => Ok(AddMessages { commit, welcome, group_info }),
            Err(error) => {
                if !noted {
                    self.advance(InvitationState::Reserved)?;
                }
                Err(AddError::Mls(error))
            }
        }
    }

    /// Notes that a Commit with these packages is about to be made, in this epoch of the group:
    /// before a transaction in which [`add_to`](Self::add_to) is called, or the Commit made by other
    /// means.
    ///
    /// # Errors
    /// When the journal cannot be written; do not send the Commit then.
    pub fn committing(&mut self, epoch: u64) -> Result<(), MetadataError> {
        self.advance(InvitationState::CommitPending { epoch })
    }

    /// Settles, after the Commit was accepted.
    ///
    /// # Errors
    /// When the server cannot be reached or the journal not be written. The journal keeps what is
    /// left to do: [`Invites::recover`](crate::Invites::recover) does it, without asking.
    pub async fn spend(mut self) -> Result<Settlement, InviteError> {
        self.advance(InvitationState::Spending)?;
        let mut settlement = Settlement::default();
        while let Some(record) = self.records.last().cloned() {
            let (spent, lost) = self.journal.settle(Verb::Spend, record).await?;
            self.records.pop();
            settlement.spent += spent;
            settlement.lost.extend(lost);
        }
        Ok(settlement)
    }

    /// Hands the packages back, when no Commit uses them or it was not accepted.
    ///
    /// # Errors
    /// As [`spend`](Self::spend).
    pub async fn release(mut self) -> Result<(), InviteError> {
        self.advance(InvitationState::Releasing)?;
        while let Some(record) = self.records.last().cloned() {
            self.journal.settle(Verb::Release, record).await?;
            self.records.pop();
        }
        Ok(())
    }

    fn advance(&mut self, state: InvitationState) -> Result<(), MetadataError> {
        self.records.iter_mut().try_for_each(|record| self.journal.advance(record, state))
    }
}

impl Drop for Invitation {
    fn drop(&mut self) {
        for record in self.records.drain(..) {
            match record.state {
                InvitationState::Reserving
                | InvitationState::Reserved
                | InvitationState::Releasing => release_later(&self.journal, record),
                InvitationState::CommitPending { .. } | InvitationState::Spending => {
                    self.journal.let_go(record.invitation_id);
                }
            }
        }
    }
}

/// Releases in the background what the journal will release otherwise.
pub(crate) fn release_later(journal: &Arc<Journal>, record: InvitationRecord) {
    let id = record.invitation_id;
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return journal.let_go(id) };
    let journal = journal.clone();
    runtime.spawn(async move {
        // What fails stays in the journal.
        drop(journal.undo(record).await);
        journal.let_go(id);
    });
}

/// Shows neither group nor users.
impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("invitees", &self.invitees.len())
            .field("missing", &self.missing.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AddMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddMessages(..)")
    }
}
