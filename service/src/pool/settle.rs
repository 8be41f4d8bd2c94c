//! A holder ends its reservations: it spends or releases them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use super::KeyPool;
use crate::{
    domain::{
        error::Error,
        ids::{ClientKey, GroupId, KeyPackageRef},
        reservation_id::Locator,
    },
    metrics::{Settlement, metrics},
    store::{SettleBatch, Settled},
};

/// A spent reservation.
#[derive(Debug, Clone)]
pub struct Spent {
    /// The ref of its package.
    pub key_package_ref: KeyPackageRef,
    /// Whether an earlier call had spent it.
    pub already: bool,
    /// Whether it was of the last resort package.
    pub last_resort: bool,
}

/// A released reservation.
#[derive(Debug, Clone, Copy)]
pub struct Released {
    /// Whether it was not held any more before.
    pub already: bool,
}

impl KeyPool {
    /// Spends reservations: all or none; one result for each id, in the same order.
    ///
    /// # Errors
    /// [`Error::ReservationUnknown`], [`Error::ReservationLost`], [`Error::ReservationNotHeld`],
    /// [`Error::GroupMismatch`], or when the store cannot do it. Nothing is spent then.
    pub async fn spend(
        &self,
        caller: &ClientKey,
        ids: &[String],
        group_id: &GroupId,
    ) -> Result<Vec<Spent>, Error> {
        let named = self.open_all(caller, ids)?;
        let settled = self.store.spend(&named.batch, group_id).await?;
        metrics().settled.add(Settlement::Spent, newly(&settled));
        named.each(&settled, |locator, settled| {
            let key_package_ref = settled.key_package_ref.clone();
            Ok(Spent {
                key_package_ref: key_package_ref.ok_or_else(no_outcome)?,
                already: settled.already,
                last_resort: locator.is_last_resort(),
            })
        })
    }

    /// Releases reservations: all or none; one result for each id, in the same order.
    ///
    /// # Errors
    /// [`Error::ReservationUnknown`], [`Error::ReservationNotHeld`] when one was spent, or when
    /// the store cannot do it. Nothing is released then.
    pub async fn release(
        &self,
        caller: &ClientKey,
        ids: &[String],
    ) -> Result<Vec<Released>, Error> {
        let named = self.open_all(caller, ids)?;
        let settled = self.store.release(&named.batch, self.policy.lapse).await?;
        metrics().settled.add(Settlement::Released, newly(&settled));
        named.each(&settled, |_, settled| Ok(Released { already: settled.already }))
    }

    fn open_all(&self, caller: &ClientKey, ids: &[String]) -> Result<Named, Error> {
        let holder = caller.digest();
        let mut distinct = Vec::new();
        let mut places: BTreeMap<Locator, usize> = BTreeMap::new();
        let mut order = Vec::with_capacity(ids.len());
        for id in ids {
            let locator = self.reservation_key.open(id, holder).ok_or(Error::ReservationUnknown)?;
            order.push(match places.entry(locator) {
                Entry::Occupied(place) => *place.get(),
                Entry::Vacant(place) => {
                    distinct.push(locator);
                    *place.insert(distinct.len() - 1)
                }
            });
        }
        let batch = SettleBatch { caller: caller.clone(), reservations: distinct };
        Ok(Named { batch: Arc::new(batch), order })
    }
}

/// The reservations that a request names, perhaps more than once.
struct Named {
    /// Each once.
    batch: Arc<SettleBatch>,
    /// For each id of the request its place among them.
    order: Vec<usize>,
}

impl Named {
    fn each<T>(
        &self,
        settled: &[Settled],
        result: impl Fn(&Locator, &Settled) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let one = |&place: &usize| {
            let pair = self.batch.reservations.get(place).zip(settled.get(place));
            pair.ok_or_else(no_outcome).and_then(|(locator, settled)| result(locator, settled))
        };
        self.order.iter().map(one).collect()
    }
}

fn newly(settled: &[Settled]) -> u64 {
    settled.iter().filter(|settled| !settled.already).count() as u64
}

fn no_outcome() -> Error {
    Error::Internal(anyhow::anyhow!("the store gave no outcome for a reservation"))
}
