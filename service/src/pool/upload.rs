//! A client adds packages to its own pool.

use std::collections::HashSet;

use time::OffsetDateTime;

use super::{KeyPool, random_id};
use crate::{
    domain::{
        error::Error,
        ids::{ClientKey, KeyPackageRef},
        key_package::{RejectReason, Rejection, ValidatedKeyPackage, validate_all},
        pool::PoolStatus,
    },
    metrics::{Upload, metrics},
    store::{StoreOutcome, UploadLimits},
};

/// What an upload does besides adding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadMode {
    /// Nothing.
    Add,
    /// It revokes the client's packages whose signature key or credential is not among those
    /// uploaded.
    ReplaceOtherCredentials,
}

/// What became of one package.
#[derive(Debug)]
pub struct UploadResult {
    /// Its ref, where the package could be read so far.
    pub key_package_ref: Option<KeyPackageRef>,
    /// Whether it is in the pool.
    pub outcome: UploadOutcome,
}

/// Whether a package is in the pool.
#[derive(Debug)]
pub enum UploadOutcome {
    /// It is.
    Accepted {
        /// The end of its lifetime.
        not_after: OffsetDateTime,
        /// Whether it is a last resort package.
        last_resort: bool,
        /// Whether it was there already.
        already_present: bool,
    },
    /// It was refused.
    Rejected {
        /// Why, for programs.
        reason: RejectReason,
        /// Why, for people.
        message: String,
    },
}

type Checked = Result<ValidatedKeyPackage, Rejection>;

impl KeyPool {
    /// Stores the packages that are valid and refuses the others; one result for each, in the
    /// order of the request, and the pool afterwards.
    ///
    /// # Errors
    /// When the store cannot do it. Nothing is stored then.
    pub async fn upload(
        &self,
        caller: &ClientKey,
        packages: Vec<Vec<u8>>,
        mode: UploadMode,
    ) -> Result<(Vec<UploadResult>, PoolStatus), Error> {
        let mut checked = self.validate_all(caller, packages).await?;
        refuse_duplicates(&mut checked);
        let valid: Vec<&ValidatedKeyPackage> =
            checked.iter().filter_map(|c| c.as_ref().ok()).collect();
        let outcomes = if valid.is_empty() {
            Vec::new()
        } else {
            let limits = UploadLimits {
                hard_cap: self.policy.hard_cap,
                replace_others: mode == UploadMode::ReplaceOtherCredentials,
            };
            self.store.upload(caller, random_id(), &valid, limits).await?
        };
        let mut outcomes = outcomes.into_iter();
        let results: Vec<UploadResult> = checked
            .into_iter()
            .map(|checked| match checked {
                Ok(package) => outcomes.next().map(|outcome| self.stored(package, outcome)),
                Err(rejection) => Some(rejected(rejection)),
            })
            .collect::<Option<_>>()
            .ok_or_else(|| {
                Error::Internal(anyhow::anyhow!("the store gave no outcome for a package"))
            })?;
        measure(&results);
        Ok((results, self.status(caller).await?))
    }

    /// Validates off the async threads, no more uploads at a time than there are cores.
    async fn validate_all(
        &self,
        caller: &ClientKey,
        packages: Vec<Vec<u8>>,
    ) -> Result<Vec<Checked>, Error> {
        let permit = self.validation.clone().acquire_owned().await;
        let permit = permit.map_err(|closed| Error::Internal(closed.into()))?;
        let (caller, policy, now) = (caller.clone(), self.upload_policy.clone(), self.clock.now());
        let work = move || {
            let checked = validate_all(&packages, &caller, &policy, now);
            drop(permit);
            checked
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.into()))
    }

    fn stored(&self, package: ValidatedKeyPackage, outcome: StoreOutcome) -> UploadResult {
        let accepted = |already_present| UploadOutcome::Accepted {
            not_after: package.not_after,
            last_resort: package.last_resort,
            already_present,
        };
        let outcome = match outcome {
            StoreOutcome::Stored => accepted(false),
            StoreOutcome::AlreadyPresent => accepted(true),
            StoreOutcome::Refused(reason) => {
                UploadOutcome::Rejected { reason, message: self.why(reason) }
            }
        };
        UploadResult { key_package_ref: Some(package.key_package_ref), outcome }
    }

    fn why(&self, reason: RejectReason) -> String {
        match reason {
            RejectReason::AlreadyUsed => {
                "the package was spent, burned, revoked or replaced before".to_owned()
            }
            RejectReason::OwnedByAnotherClient => {
                "another client of this user has published the package".to_owned()
            }
            RejectReason::InvalidInitKey => {
                "the init_key was used by this client before (RFC 9420, section 16.8)".to_owned()
            }
            RejectReason::PoolFull => {
                format!("the pool holds its {} packages of this cipher suite", self.policy.hard_cap)
            }
            other => format!("{other:?}"),
        }
    }
}

fn measure(results: &[UploadResult]) {
    for result in results {
        match &result.outcome {
            UploadOutcome::Accepted { already_present: true, .. } => {
                metrics().uploaded.count(Upload::AlreadyPresent);
            }
            UploadOutcome::Accepted { .. } => metrics().uploaded.count(Upload::Stored),
            UploadOutcome::Rejected { reason, .. } => metrics().upload_rejected(reason.as_str()),
        }
    }
}

fn rejected(Rejection { key_package_ref, reason, message }: Rejection) -> UploadResult {
    UploadResult { key_package_ref, outcome: UploadOutcome::Rejected { reason, message } }
}

/// Refuses what stands earlier in the same request, by ref or by init_key.
fn refuse_duplicates(checked: &mut [Checked]) {
    let mut refs = HashSet::new();
    let mut init_keys = HashSet::new();
    for slot in checked {
        let Ok(package) = slot else { continue };
        let message = if !refs.insert(package.key_package_ref.clone()) {
            "the same package stands earlier in this request"
        } else if !init_keys.insert(package.init_key_digest) {
            "a package with the same init_key stands earlier in this request"
        } else {
            continue;
        };
        *slot = Err(Rejection {
            key_package_ref: Some(package.key_package_ref.clone()),
            reason: RejectReason::DuplicateInRequest,
            message: message.to_owned(),
        });
    }
}
