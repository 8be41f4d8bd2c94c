//! Token buckets by key, in bounded memory.
//!
//! A bucket is one number: when it is full again (the generic cell rate algorithm, as of ATM). One
//! that is full is the same as one that was never used, and is forgotten first. Where that does not
//! make room enough, those go that are nearest to full: a flood of keys makes nobody's empty bucket
//! full, unless it empties more buckets further than that one.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Locked one at a time, so that calls do not wait for one another, nor long for a clearing.
const SHARDS: usize = 16;

/// How much a bucket holds, and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The tokens of a full bucket: what may be taken at once.
    pub burst: u32,
    /// The tokens that it gets back in a minute.
    pub per_minute: u32,
}

impl Rate {
    /// Nanoseconds until so many tokens are back.
    fn time_for(self, tokens: u32) -> u64 {
        const MINUTE: u64 = 60_000_000_000;
        u64::from(tokens).saturating_mul(MINUTE / u64::from(self.per_minute.max(1)))
    }
}

/// When a bucket is full again, in nanoseconds since the first use of the process.
type FullAt = u64;

/// A bucket for each key.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: Rate,
    most: usize,
    hasher: RandomState,
    shards: [Mutex<HashMap<K, FullAt>>; SHARDS],
}

impl<K: Hash + Eq + Copy> Buckets<K> {
    /// Remembers about `most` keys, and never more.
    pub(super) fn new(rate: Rate, most: usize) -> Self {
        Self { rate, most, hasher: RandomState::new(), shards: Default::default() }
    }

    /// The tokens of a full bucket, at least one.
    pub(super) fn burst(&self) -> u32 {
        self.rate.burst.max(1)
    }

    /// Takes tokens, or says how long to wait for them and takes none. More than the bucket can
    /// hold are taken from a full one.
    pub(super) fn take(&self, key: &K, tokens: u32, now: u64) -> Result<(), Duration> {
        let mut shard = self.shard(key);
        let full_at = shard.get(key).map_or(now, |full_at| now.max(*full_at));
        let after = full_at.saturating_add(self.rate.time_for(tokens.min(self.burst())));
        let latest = now.saturating_add(self.rate.time_for(self.burst()));
        if after > latest {
            return Err(Duration::from_nanos(after - latest));
        }
        self.put(&mut shard, *key, after, now);
        Ok(())
    }

    /// How long until so many tokens can be taken.
    pub(super) fn wait(&self, key: &K, tokens: u32, now: u64) -> Duration {
        let full_at = self.shard(key).get(key).map_or(now, |full_at| now.max(*full_at));
        let after = full_at.saturating_add(self.rate.time_for(tokens.min(self.burst())));
        let latest = now.saturating_add(self.rate.time_for(self.burst()));
        Duration::from_nanos(after.saturating_sub(latest))
    }

    /// Takes tokens that are owed already, also those that are not there: the bucket fills so much
    /// later. It never owes more than another bucketful.
    pub(super) fn charge(&self, key: &K, tokens: u32, now: u64) {
        let mut shard = self.shard(key);
        let full_at = shard.get(key).map_or(now, |full_at| now.max(*full_at));
        let after = full_at.saturating_add(self.rate.time_for(tokens));
        let most = now.saturating_add(self.rate.time_for(self.burst()).saturating_mul(2));
        self.put(&mut shard, *key, after.min(most.max(full_at)), now);
    }

    /// Gives back what was taken for a call that did nothing.
    pub(super) fn give_back(&self, key: &K, tokens: u32) {
        if let Some(full_at) = self.shard(key).get_mut(key) {
            *full_at = full_at.saturating_sub(self.rate.time_for(tokens.min(self.burst())));
        }
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn put(&self, shard: &mut HashMap<K, FullAt>, key: K, full_at: FullAt, now: u64) {
        // Not by `insert`: in a full map that makes room before it looks whether it knows the key.
        if let Some(known) = shard.get_mut(&key) {
            *known = full_at;
            return;
        }
        let most = (self.most / SHARDS).max(1);
        if shard.len() >= most {
            clear(shard, most, now);
        } else if shard.len() == shard.capacity() {
            make_room(shard, now);
        }
        shard.insert(key, full_at);
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, FullAt>> {
        // The remainder is below the number of shards.
        lock(&self.shards[self.hasher.hash_one(key) as usize % SHARDS])
    }
}

/// Each change is one call, so a panic elsewhere leaves the map whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets full buckets rather than to take more memory, which is taken only if more than half of them
/// are not full: so the work is for as many insertions.
fn make_room<K: Hash + Eq>(shard: &mut HashMap<K, FullAt>, now: u64) {
    shard.retain(|_, full_at| *full_at > now);
    if shard.len() > shard.capacity() / 2 {
        shard.reserve(shard.capacity());
    }
}

/// Forgets full buckets; then, while there is less than a quarter of the room, those that are
/// nearest to full.
fn clear<K: Hash + Eq + Copy>(shard: &mut HashMap<K, FullAt>, most: usize, now: u64) {
    shard.retain(|_, full_at| *full_at > now);
    let excess = shard.len().saturating_sub(most - most.div_ceil(4));
    if excess == 0 {
        return;
    }
    let mut by_time: Vec<(FullAt, K)> =
        shard.iter().map(|(key, full_at)| (*full_at, *key)).collect();
    by_time.select_nth_unstable_by_key(excess - 1, |(full_at, _)| *full_at);
    for (_, key) in &by_time[..excess] {
        shard.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Ten at once, and one a second.
    const RATE: Rate = Rate { burst: 10, per_minute: 60 };

    fn buckets(most: usize) -> Buckets<u64> {
        Buckets::new(RATE, most)
    }

    /// Callers who come once and never again, one a second, take the memory of those few that have
    /// not got their tokens back.
    #[test]
    fn memory_is_for_buckets_that_are_not_full() {
        let buckets = buckets(1 << 16);
        for n in 0..100_000 {
            buckets.take(&n, 1, n * SECOND).unwrap();
        }
        assert!(buckets.len() < 8 * SHARDS, "{}", buckets.len());
        for n in 0..10_000 {
            buckets.take(&n, 1, 200_000 * SECOND).unwrap();
        }
        assert!(buckets.len() >= 10_000, "all of them are owed a token");
    }

    /// Nor do they when others come again and again.
    #[test]
    fn those_who_come_again_make_no_room_for_those_who_do_not() {
        let buckets = buckets(1 << 16);
        for n in 0..100_000 {
            // Full again after 16 seconds, when the next newcomer is there.
            let key = if n % 16 == 0 { n } else { u64::MAX - n % 16 };
            buckets.take(&key, 1, n * SECOND).unwrap();
        }
        assert!(buckets.len() < 8 * SHARDS, "{}", buckets.len());
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_time_brings_to_the_nanosecond() {
        let buckets = buckets(100);
        let start = 77 * SECOND + 5;
        for _ in 0..10 {
            assert_eq!(buckets.take(&1, 1, start), Ok(()));
        }
        assert_eq!(buckets.take(&1, 1, start), Err(Duration::from_secs(1)));
        assert_eq!(buckets.take(&1, 3, start), Err(Duration::from_secs(3)));
        assert_eq!(buckets.take(&2, 10, start), Ok(()), "another key has a bucket of its own");
        let early = buckets.take(&1, 1, start + SECOND - 1);
        assert_eq!(early, Err(Duration::from_nanos(1)));
        assert_eq!(buckets.take(&1, 1, start + SECOND), Ok(()));
        assert_eq!(buckets.take(&1, 1, start + SECOND), Err(Duration::from_secs(1)));
        // An hour later it is full, and no fuller.
        let later = start + 3600 * SECOND;
        assert_eq!(buckets.take(&1, 10, later), Ok(()));
        assert_eq!(buckets.take(&1, 1, later), Err(Duration::from_secs(1)));
    }

    #[test]
    fn whoever_waits_as_long_as_was_told_gets_it_and_a_refusal_costs_nothing() {
        let buckets = buckets(100);
        buckets.take(&1, 10, 0).unwrap();
        for tokens in [1, 4, 10] {
            for _ in 0..100 {
                let wait = buckets.take(&1, tokens, 0).unwrap_err();
                assert_eq!(wait, Duration::from_secs(tokens.into()));
                assert_eq!(wait, buckets.wait(&1, tokens, 0));
            }
        }
        assert_eq!(buckets.take(&1, 4, 4 * SECOND), Ok(()));
        assert_eq!(buckets.take(&1, 7, 11 * SECOND), Ok(()));
    }

    #[test]
    fn what_is_too_much_for_any_bucket_takes_a_full_one() {
        let buckets = buckets(100);
        assert_eq!(buckets.take(&1, 1000, 0), Ok(()));
        assert_eq!(buckets.take(&1, 1000, 0), Err(Duration::from_secs(10)));
    }

    #[test]
    fn a_debt_is_paid_by_time_and_has_a_bound() {
        let buckets = buckets(100);
        buckets.charge(&1, 13, 0);
        assert_eq!(buckets.take(&1, 1, 0), Err(Duration::from_secs(4)));
        for _ in 0..100 {
            buckets.charge(&1, 1000, 0);
        }
        assert_eq!(buckets.take(&1, 1, 0), Err(Duration::from_secs(11)), "two bucketfuls");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let buckets = buckets(100);
        buckets.take(&1, 10, 0).unwrap();
        buckets.give_back(&1, 4);
        assert_eq!(buckets.take(&1, 4, 0), Ok(()));
        assert_eq!(buckets.take(&1, 1, 0), Err(Duration::from_secs(1)));
    }

    #[test]
    fn a_million_keys_take_no_more_room_and_fill_no_empty_bucket() {
        const MOST: usize = 10_000;
        let buckets = buckets(MOST);
        let attackers = 0..100;
        for attacker in attackers.clone() {
            buckets.take(&attacker, 10, 0).unwrap();
        }
        for key in 1_000..1_001_000 {
            // Some of them more than others, none as much as the attackers.
            buckets.take(&key, 1 + (key % 9) as u32, 0).unwrap();
            if key % 50_000 == 0 {
                assert!(buckets.len() <= MOST);
            }
        }
        assert!(buckets.len() <= MOST);
        for attacker in attackers {
            assert!(buckets.take(&attacker, 1, 0).is_err(), "{attacker} has a full bucket again");
        }
    }

    #[test]
    fn full_buckets_are_forgotten_before_others() {
        let buckets = buckets(16_000);
        for key in 0..8_000 {
            buckets.take(&key, 1, 0).unwrap(); // full at 1 s
        }
        for key in 8_000..11_000 {
            buckets.take(&key, 5, 0).unwrap();
        }
        for key in 20_000..30_000 {
            buckets.take(&key, 5, 2 * SECOND).unwrap();
        }
        for key in 8_000..11_000 {
            assert_eq!(buckets.wait(&key, 10, 2 * SECOND), Duration::from_secs(3));
        }
    }
}
