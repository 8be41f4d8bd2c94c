use std::{sync::Arc, time::Duration};

use keypool_proto::v1::{self, ReserveResult};
use openmls::prelude::{Ciphersuite, KeyPackage, OpenMlsCrypto};
use uuid::Uuid;

use crate::{
    Client, CredentialCheck, Error, Invitation, MetadataError, MetadataStore, Missing,
    MissingReason, Reserve,
    answers::{Answers, Judged},
    invitation::release_later,
    journal::Journal,
    verify::Rules,
};

/// How many targets one call carries.
const MOST_TARGETS: usize = 100;
/// As long as keypool accepts packages by default, and the hour by which clients backdate them.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60 + 60 * 60);

/// Invites clients to groups: reserves their KeyPackages, validates each of them without trust in
/// the server, and sees to it that every reservation is spent or released, over crashes too.
///
/// One for each device, over its [`MetadataStore`], where the journal is. Call
/// [`recover`](Self::recover) when the application starts.
#[derive(Clone)]
pub struct Invites {
    client: Client,
    pub(crate) journal: Arc<Journal>,
    check: Arc<dyn CredentialCheck>,
    max_lifetime: Duration,
}

/// Why there is no invitation, or why one could not be settled now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// The server refused, or cannot be reached.
    #[error(transparent)]
    Keypool(#[from] Error),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] MetadataError),
    /// The crypto provider does not know this cipher suite.
    #[error("the crypto provider does not know cipher suite {0:#06x}")]
    UnsupportedCipherSuite(u32),
    /// [`Reserve::all_or_nothing`] was asked for, and these clients gave no package that can be
    /// used. Nothing is held.
    #[error("{} clients gave no package that can be used", .0.len())]
    Incomplete(Vec<Missing>),
}

impl Invites {
    /// Over this device's client and store. `check` decides whose credentials to believe:
    /// [`basic_credential_names_user`](crate::basic_credential_names_user) at the least.
    pub fn new(
        client: Client,
        store: impl MetadataStore + 'static,
        check: impl CredentialCheck + 'static,
    ) -> Self {
        let journal = Arc::new(Journal::new(client.clone(), Arc::new(store)));
        Self { client, journal, check: Arc::new(check), max_lifetime: MAX_LIFETIME }
    }

    /// Refuses packages whose `not_after - not_before` is longer (RFC 9420, section 7.2): 90 days
    /// and an hour unless set.
    #[must_use]
    pub fn max_lifetime(mut self, longest: Duration) -> Self {
        self.max_lifetime = longest;
        self
    }

    /// Reserves and validates one package for each client of each target, with one call for each
    /// 100 targets. Begin with [`Reserve::for_group`], which knows what the group requires and who
    /// is in it.
    ///
    /// Clients that gave no package, or one that must not be used, are
    /// [`missing`](Invitation::missing) from the invitation; reservations of the latter are
    /// released in the background.
    ///
    /// # Errors
    /// [`InviteError`]. Nothing is held then: what was reserved already is released in the
    /// background, as it is when this is dropped before its end.
    pub async fn reserve(
        &self,
        crypto: &impl OpenMlsCrypto,
        reserve: &Reserve,
    ) -> Result<Invitation, InviteError> {
        let rules = self.rules(crypto, reserve)?;
        let mut answers = Answers::default();
        let mut invitation =
            Invitation::new(self.journal.clone(), reserve.message().group_id.clone());
        for message in calls(reserve.message()) {
            invitation.track(self.journal.begin(&message)?);
            let answer = match self.client.reserve(&Reserve::of(message.clone())).await {
                Ok(answer) => answer,
                Err(error) => match unavailable(&message, &error) {
                    Some(results) => v1::ReserveKeyPackagesResponse { results },
                    None => {
                        // The server said no: there is nothing to undo.
                        if error.rejection().is_some()
                            && !error.is_transient()
                            && let Some(record) = invitation.untrack_last()
                        {
                            self.journal.remove(record.invitation_id)?;
                        }
                        return Err(error.into());
                    }
                },
            };
            let judged = answers.judge(&message.targets, answer.results, |reservation, of| {
                self.admit(crypto, &rules, reserve, reservation, of)
            });
            self.note(&mut invitation, judged)?;
        }
        if reserve.message().all_or_nothing && !invitation.missing().is_empty() {
            return Err(InviteError::Incomplete(invitation.take_missing()));
        }
        Ok(invitation)
    }

    fn rules(&self, crypto: &impl OpenMlsCrypto, reserve: &Reserve) -> Result<Rules, InviteError> {
        let message = reserve.message();
        let number = message.cipher_suite;
        let cipher_suite = u16::try_from(number)
            .ok()
            .and_then(|number| Ciphersuite::try_from(number).ok())
            .filter(|&cipher_suite| crypto.supports(cipher_suite).is_ok())
            .ok_or(InviteError::UnsupportedCipherSuite(number))?;
        Ok(Rules {
            cipher_suite,
            required: message.required_capabilities.clone().unwrap_or_default(),
            max_lifetime_seconds: self.max_lifetime.as_secs(),
        })
    }

    /// The package of a reservation, if it can be used in this group.
    fn admit(
        &self,
        crypto: &impl OpenMlsCrypto,
        rules: &Rules,
        reserve: &Reserve,
        reservation: &v1::Reservation,
        of: (&str, &str),
    ) -> Result<KeyPackage, MissingReason> {
        let package =
            rules.verify(crypto, reservation, of, &*self.check).map_err(MissingReason::Refused)?;
        if reserve.is_member(package.leaf_node().signature_key()) {
            return Err(MissingReason::AlreadyMember);
        }
        Ok(package)
    }

    /// Writes to the journal what a call gave.
    fn note(&self, invitation: &mut Invitation, judged: Judged) -> Result<(), MetadataError> {
        let Judged { invitees, missing, held, refused, expires_at } = judged;
        let Some(record) = invitation.track_last() else { return Ok(()) };
        let refused = self.journal.answered(record, held, refused, expires_at)?;
        if record.reservations.is_empty() {
            drop(invitation.untrack_last());
        }
        if let Some(refused) = refused {
            release_later(&self.journal, refused);
        }
        invitation.extend(invitees, missing);
        Ok(())
    }
}

/// The calls that it takes, each with a request_id of its own.
fn calls(message: &v1::ReserveKeyPackagesRequest) -> Vec<v1::ReserveKeyPackagesRequest> {
    let mut calls = vec![v1::ReserveKeyPackagesRequest { targets: Vec::new(), ..message.clone() }];
    for (number, target) in message.targets.iter().enumerate() {
        if number != 0 && number % MOST_TARGETS == 0 {
            let request_id = Uuid::new_v4().to_string();
            calls.push(v1::ReserveKeyPackagesRequest {
                request_id,
                targets: Vec::new(),
                ..message.clone()
            });
        }
        if let Some(call) = calls.last_mut() {
            call.targets.push(target.clone());
        }
    }
    calls
}

/// A call for exactly one client that cannot be served fails as a whole; here it is one that is
/// missing, as it would be among several.
fn unavailable(
    message: &v1::ReserveKeyPackagesRequest,
    error: &Error,
) -> Option<Vec<ReserveResult>> {
    let [target] = message.targets.as_slice() else { return None };
    let reason = match error {
        Error::PoolExhausted(_) => v1::UnavailableReason::PoolExhausted,
        Error::NoCompatibleKeyPackage(_) => v1::UnavailableReason::NoCompatibleKeyPackage,
        Error::Quota(_) => v1::UnavailableReason::Quota,
        _ => return None,
    };
    let outcome = v1::Unavailable { reason: reason.into() };
    Some(vec![ReserveResult {
        user_id: target.user_id.clone(),
        client_id: target.client_ids.first().cloned().unwrap_or_default(),
        outcome: Some(v1::reserve_result::Outcome::Unavailable(outcome)),
    }])
}
