//! Tokens that were verified before, so that each costs one signature and no more.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Caller;

/// How many tokens are remembered for certain; up to twice as many are.
const REMEMBERED: usize = 4096;

/// What a good token says.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    pub(super) caller: Caller,
    /// Until then, in seconds since 1970.
    pub(super) until: i64,
}

/// What was verified, by the SHA-256 of each token.
#[derive(Debug, Default)]
pub(super) struct VerifiedTokens(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// The keys that all of them were verified with.
    generation: u64,
    young: HashMap<[u8; 32], Verified>,
    /// What was not asked for since it was young.
    old: HashMap<[u8; 32], Verified>,
}

impl VerifiedTokens {
    /// The caller of a token that keys of this generation verified and that has not ended by
    /// `now`.
    pub(super) fn get(&self, token: &[u8; 32], generation: u64, now: i64) -> Option<Caller> {
        let mut memory = self.lock();
        if memory.generation != generation {
            return None;
        }
        let found = match memory.young.get(token) {
            Some(found) => found.clone(),
            None => {
                let found = memory.old.remove(token)?;
                memory.remember(*token, found.clone());
                found
            }
        };
        (now < found.until).then_some(found.caller)
    }

    /// Remembers a token that keys of this generation verified.
    pub(super) fn put(&self, token: [u8; 32], generation: u64, verified: Verified) {
        let mut memory = self.lock();
        if generation < memory.generation {
            return; // the keys changed meanwhile
        }
        if generation > memory.generation {
            *memory = Memory { generation, ..Memory::default() };
        }
        memory.remember(token, verified);
    }

    /// Each change is one call, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn remember(&mut self, token: [u8; 32], verified: Verified) {
        if self.young.len() >= REMEMBERED {
            // Both keep their room: nearly a megabyte that is given back and taken again every few
            // minutes finds another place each time, and the heap grows.
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(token, verified);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::ids::{ClientId, ClientKey, UserId},
        grpc::auth::Scopes,
    };

    fn verified(until: i64) -> Verified {
        let key = ClientKey {
            user: UserId::parse("bob").unwrap(),
            client: ClientId::parse("phone").unwrap(),
        };
        Verified { caller: Caller { key, scopes: Scopes::default() }, until }
    }

    fn token(number: usize) -> [u8; 32] {
        let mut token = [0; 32];
        token[..8].copy_from_slice(&number.to_be_bytes());
        token
    }

    #[test]
    fn a_token_ends_and_so_do_the_keys_it_was_verified_with() {
        let tokens = VerifiedTokens::default();
        tokens.put(token(1), 7, verified(100));
        assert!(tokens.get(&token(1), 7, 99).is_some());
        assert!(tokens.get(&token(1), 7, 100).is_none());
        assert!(tokens.get(&token(2), 7, 99).is_none());
        assert!(tokens.get(&token(1), 8, 99).is_none(), "other keys may refuse it");
        tokens.put(token(2), 8, verified(100));
        assert!(tokens.get(&token(1), 8, 99).is_none());
        tokens.put(token(3), 7, verified(100));
        assert!(tokens.get(&token(3), 8, 99).is_none(), "verified with keys of the past");
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_in_use() {
        let tokens = VerifiedTokens::default();
        for number in 0..10 * REMEMBERED {
            tokens.put(token(number), 0, verified(100));
            assert!(tokens.get(&token(0), 0, 0).is_some(), "in use");
        }
        let memory = tokens.lock();
        assert!(memory.young.len() + memory.old.len() <= 2 * REMEMBERED);
    }

    #[test]
    fn its_memory_is_taken_once() {
        let tokens = VerifiedTokens::default();
        for number in 0..2 * REMEMBERED {
            tokens.put(token(number), 0, verified(100));
        }
        for number in 2 * REMEMBERED..5 * REMEMBERED {
            tokens.put(token(number), 0, verified(100));
            let memory = tokens.lock();
            // Also when the young ones have just become old.
            assert!(memory.young.capacity() >= REMEMBERED, "{}", memory.young.capacity());
        }
    }
}
