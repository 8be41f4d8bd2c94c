//! The Reserves of one caller from one user take turns.
//!
//! Postgres makes them take turns in any case, by the lock on the caller's draw, but a call that
//! waits there holds a connection. They wait here instead: however many calls one caller has
//! under way, others do not wait longer for a connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::domain::ids::{ClientDigest, UserId};

/// Who reserves, and from whom.
type Key = (ClientDigest, UserId);

/// Who waits for a turn. Holds no more than there are calls under way.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Key, Queue>>);

#[derive(Debug, Default)]
struct Queue {
    places: usize,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A place in a queue, left when this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    turns: &'a Turns,
    key: Key,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Turns {
    /// A place in the queue of `key`. The turn comes by [`Place::turn`].
    pub(super) fn place(&self, key: Key) -> Place<'_> {
        let mut queues = self.lock();
        let queue = queues.entry(key.clone()).or_default();
        queue.places += 1;
        Place { turns: self, key, turn: queue.turn.clone() }
    }

    /// A panic elsewhere while the lock was held leaves the map whole: each change is one call.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits for the turn, first come, first served. It ends when what this returns is dropped.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.turns.lock();
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.places -= 1;
            if queue.places == 0 {
                queues.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_goes_with_the_last_who_stood_in_it() {
        let turns = Turns::default();
        let key = (ClientDigest([1; 16]), UserId::parse("bob").unwrap());
        let places = [turns.place(key.clone()), turns.place(key.clone())];
        let [first, second] = &places;
        let taken = first.turn.try_lock().unwrap();
        assert!(second.turn.try_lock().is_err());
        drop(taken);
        assert!(second.turn.try_lock().is_ok());
        drop(places);
        assert!(turns.lock().is_empty());
    }
}
