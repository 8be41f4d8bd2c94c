use std::sync::Arc;

use bytes::Bytes;
use openmls::prelude::Ciphersuite;

use super::{Identity, plan::is_current};
use crate::PackageRecord;

/// The identities of the moment, and their digests.
pub(super) struct Current<S> {
    pub(super) identities: Arc<Vec<Identity<S>>>,
    pub(super) digests: Vec<Bytes>,
}

impl<S> Current<S> {
    /// Whether it is a package that this pool publishes, and not one of an earlier credential or
    /// of a cipher suite that was given up.
    pub(super) fn has(&self, record: &PackageRecord) -> bool {
        self.suites().any(|(_, digest, suite)| is_current(record, suite.into(), digest))
    }

    pub(super) fn suites(&self) -> impl Iterator<Item = (&Identity<S>, &Bytes, Ciphersuite)> {
        let identities = self.identities.iter().zip(&self.digests);
        identities.flat_map(|(identity, digest)| {
            identity.cipher_suites.iter().map(move |&suite| (identity, digest, suite))
        })
    }
}
