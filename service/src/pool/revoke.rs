//! An owner withdraws packages.

use super::KeyPool;
use crate::{
    domain::{
        error::Error,
        ids::{ClientId, ClientKey, KeyPackageRef, short_digest},
    },
    store::{Revocation, Revoked, Signer},
};

/// Which packages.
#[derive(Debug)]
pub enum Selection {
    /// Those with these refs.
    Refs(Vec<KeyPackageRef>),
    /// All.
    All,
    /// All but those with this signature key in their leaf.
    AllExceptSignatureKey(Vec<u8>),
}

impl KeyPool {
    /// Revokes packages of the calling client or, when it is named, of another client of the same
    /// user. What is reserved may still be spent until its reservation ends.
    ///
    /// # Errors
    /// When the store cannot do it. Nothing is revoked then.
    pub async fn revoke(
        &self,
        caller: &ClientKey,
        client: Option<ClientId>,
        selection: Selection,
    ) -> Result<Revoked, Error> {
        let client = client.unwrap_or_else(|| caller.client.clone());
        let owner = ClientKey { user: caller.user.clone(), client };
        let revocation = match selection {
            Selection::Refs(refs) => Revocation::Refs(refs.into_iter().map(|r| r.0).collect()),
            Selection::All => Revocation::AllExcept(Vec::new()),
            Selection::AllExceptSignatureKey(key) => Revocation::AllExcept(vec![Signer {
                signature_key_digest: short_digest(&key),
                credential_digest: None,
            }]),
        };
        let revoked = self.store.revoke(caller, &owner, &revocation).await?;
        self.watch.touch(&owner, true);
        Ok(revoked)
    }
}
