use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use uuid::Uuid;

use super::{InvitationRecord, MetadataError, MetadataStore, PackageRecord};

/// Keeps metadata in memory, for a client whose OpenMLS storage is in memory too: what is
/// forgotten together is not missed.
#[derive(Default)]
pub struct MemoryMetadataStore(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    packages: HashMap<Bytes, PackageRecord>,
    invitations: HashMap<Uuid, InvitationRecord>,
}

impl MemoryMetadataStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // No change leaves the tables between two states, so one that panicked did no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetadataStore for MemoryMetadataStore {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        Ok(self.tables().packages.values().cloned().collect())
    }

    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        let records = records.iter().cloned();
        self.tables().packages.extend(records.map(|r| (r.key_package_ref.clone(), r)));
        Ok(())
    }

    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        let mut tables = self.tables();
        for key_package_ref in refs {
            tables.packages.remove(key_package_ref);
        }
        Ok(())
    }

    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        let mut all: Vec<_> = self.tables().invitations.values().cloned().collect();
        all.sort_by_key(|record| (record.created_at, record.invitation_id));
        Ok(all)
    }

    fn invitation(&self, invitation_id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        Ok(self.tables().invitations.get(&invitation_id).cloned())
    }

    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.tables().invitations.insert(record.invitation_id, record.clone());
        Ok(())
    }

    fn remove_invitation(&self, invitation_id: Uuid) -> Result<(), MetadataError> {
        self.tables().invitations.remove(&invitation_id);
        Ok(())
    }
}

impl fmt::Debug for MemoryMetadataStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryMetadataStore(..)")
    }
}
