use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use keypool_proto::v1;
use prost::Message as _;
use uuid::Uuid;

use crate::{
    Client, Code, Error, InvitationRecord, InvitationState, InviteError, MetadataError,
    MetadataStore, ReservationRecord, Reserve,
    clock::{now, unix_seconds},
};

/// How many reservations one call settles.
const MOST_AT_ONCE: usize = 1000;
/// The server's default, which it may have changed.
const USUAL_TTL: Duration = Duration::from_secs(60);
/// A Reserve that is older than its reservations by so much is not repeated.
const LONG_LAPSED_SECONDS: u64 = 24 * 60 * 60;

/// What becomes of invitations, on this device's store and on the server.
///
/// An entry is written before the server is asked for anything that the entry could not undo, and
/// removed once the server has confirmed that there is nothing left to undo.
pub(crate) struct Journal {
    client: Client,
    store: Arc<dyn MetadataStore>,
    /// Entries that an [`Invitation`](crate::Invitation) of this process stands for.
    live: Mutex<HashSet<Uuid>>,
}

/// A reservation that could not be spent although its package was used.
#[derive(Debug)]
#[non_exhaustive]
pub struct Lost {
    /// The package's KeyPackageRef (RFC 9420, section 5.2).
    pub key_package_ref: Bytes,
    /// Why: [`Error::ReservationLost`] when the reservation lapsed and the package was issued to
    /// someone else or has ended since.
    pub error: Error,
}

/// What the server is told of reservations.
pub(crate) enum Verb {
    Spend,
    Release,
}

impl Journal {
    pub(crate) fn new(client: Client, store: Arc<dyn MetadataStore>) -> Self {
        Self { client, store, live: Mutex::default() }
    }

    /// Notes that a Reserve is about to be sent.
    pub(crate) fn begin(
        &self,
        message: &v1::ReserveKeyPackagesRequest,
    ) -> Result<InvitationRecord, InviteError> {
        let invitation_id = Uuid::parse_str(&message.request_id)
            .map_err(|_| Error::Config("a request_id is a UUID".into()))?;
        let ttl = message.ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(USUAL_TTL);
        let created_at = unix_seconds(now());
        let record = InvitationRecord {
            invitation_id,
            group_id: message.group_id.clone(),
            cipher_suite: u16::try_from(message.cipher_suite).unwrap_or_default(),
            request: message.encode_to_vec().into(),
            reservations: Vec::new(),
            state: InvitationState::Reserving,
            created_at,
            expires_at: created_at.saturating_add(ttl.as_secs()),
        };
        self.live().insert(invitation_id);
        self.store.put_invitation(&record).inspect_err(|_| self.let_go(invitation_id))?;
        Ok(record)
    }

    /// Notes how far an invitation has come.
    pub(crate) fn advance(
        &self,
        record: &mut InvitationRecord,
        state: InvitationState,
    ) -> Result<(), MetadataError> {
        let before = std::mem::replace(&mut record.state, state);
        self.store.put_invitation(record).inspect_err(|_| record.state = before)
    }

    /// Notes what a Reserve was answered. What is `refused` is to be released, whatever becomes of
    /// the rest.
    pub(crate) fn answered(
        &self,
        record: &mut InvitationRecord,
        reservations: Vec<ReservationRecord>,
        refused: Vec<ReservationRecord>,
        expires_at: u64,
    ) -> Result<Option<InvitationRecord>, MetadataError> {
        let mut answered = InvitationRecord {
            request: Bytes::new(),
            expires_at,
            state: InvitationState::Reserved,
            reservations,
            ..record.clone()
        };
        let refused = (!refused.is_empty()).then(|| InvitationRecord {
            invitation_id: Uuid::new_v4(),
            state: InvitationState::Releasing,
            reservations: refused,
            ..answered.clone()
        });
        // In this order: until the second is written, the Reserve would be repeated, and all of
        // its reservations released.
        if let Some(refused) = &refused {
            self.store.put_invitation(refused)?;
        }
        if answered.reservations.is_empty() {
            self.remove(answered.invitation_id)?;
        } else {
            self.store.put_invitation(&answered)?;
        }
        std::mem::swap(record, &mut answered);
        Ok(refused)
    }

    pub(crate) fn remove(&self, invitation_id: Uuid) -> Result<(), MetadataError> {
        let removed = self.store.remove_invitation(invitation_id);
        self.let_go(invitation_id);
        removed
    }

    /// Leaves an entry to [`Invites::recover`](crate::Invites::recover).
    pub(crate) fn let_go(&self, invitation_id: Uuid) {
        self.live().remove(&invitation_id);
    }

    /// The entries that nothing in this process stands for. They are held until they are let go.
    pub(crate) fn left_over(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        let mut records = self.store.invitations()?;
        let mut live = self.live();
        records.retain(|record| live.insert(record.invitation_id));
        Ok(records)
    }

    /// Undoes an invitation whose packages no Commit uses.
    pub(crate) async fn undo(&self, mut record: InvitationRecord) -> Result<usize, InviteError> {
        if record.state == InvitationState::Reserving {
            record.reservations = self.ask_again(&record).await?;
        }
        self.settle(Verb::Release, record).await.map(|(released, _)| released)
    }

    /// What a Reserve reserved whose answer was lost: the same request_id gives the same again.
    async fn ask_again(
        &self,
        record: &InvitationRecord,
    ) -> Result<Vec<ReservationRecord>, InviteError> {
        if unix_seconds(now()) > record.expires_at.saturating_add(LONG_LAPSED_SECONDS) {
            return Ok(Vec::new()); // lapsed: the same again would be new ones
        }
        let message = v1::ReserveKeyPackagesRequest::decode(record.request.clone())
            .map_err(MetadataError::new)?;
        match self.client.reserve(&Reserve::of(message)).await {
            Ok(answer) => Ok(answer.reservations().map(as_received).collect()),
            Err(Error::PoolExhausted(_) | Error::NoCompatibleKeyPackage(_) | Error::Quota(_)) => {
                Ok(Vec::new())
            }
            Err(error) if is_final(&error) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Spends or releases all of an invitation's reservations, and ends it. Answers how many the
    /// server took, and those that it cannot settle any more.
    pub(crate) async fn settle(
        &self,
        verb: Verb,
        record: InvitationRecord,
    ) -> Result<(usize, Vec<Lost>), InviteError> {
        let mut lost = Vec::new();
        let mut parts: Vec<_> = record.reservations.chunks(MOST_AT_ONCE).collect();
        // A call is all or nothing, so one that cannot be settled is looked for by halving.
        while let Some(part) = parts.pop() {
            let ids = part.iter().map(|reservation| &reservation.reservation_id);
            let settled = match verb {
                Verb::Spend => self.client.spend(record.group_id.clone(), ids).await.map(drop),
                Verb::Release => self.client.release(ids).await.map(drop),
            };
            match settled {
                Ok(()) => {}
                Err(error) if is_final(&error) => match part {
                    [one] => {
                        lost.push(Lost { key_package_ref: one.key_package_ref.clone(), error });
                    }
                    _ => parts.extend(<[_; 2]>::from(part.split_at(part.len() / 2))),
                },
                Err(error) => return Err(error.into()),
            }
        }
        self.remove(record.invitation_id)?;
        Ok((record.reservations.len() - lost.len(), lost))
    }

    fn live(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("client", &self.client).finish_non_exhaustive()
    }
}

/// A reservation whose package was not, or will not be, looked at.
pub(crate) fn as_received(reservation: &v1::Reservation) -> ReservationRecord {
    ReservationRecord {
        reservation_id: reservation.reservation_id.clone(),
        key_package_ref: reservation.key_package_ref.clone(),
        encryption_key: Bytes::new(),
    }
}

/// Whether asking again can only give the same answer.
fn is_final(error: &Error) -> bool {
    match error {
        Error::ReservationUnknown(_) | Error::ReservationLost(_) | Error::ReservationNotHeld(_) => {
            true
        }
        // What the server itself once answered, it calls wrong.
        Error::Rejected(rejection) => matches!(
            rejection.code,
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists
        ),
        _ => false,
    }
}
