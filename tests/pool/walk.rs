//! Random walks through everything that can happen to a pool; after each step all must agree:
//! rows, counters, status, events, and what the callers were told.

use std::collections::{BTreeMap, HashMap, HashSet};

use keypool_service::{
    domain::{
        error::Error,
        ids::{CipherSuite, ClientKey, KeyPackageRef},
        policy::{LapsePolicy, PoolPolicy},
    },
    pool::{KeyPool, Selection, SweepPolicy, UploadMode},
};
use keypool_testing::{
    forge::Forge,
    world::{World, ask, client, group, verdict},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sqlx::Row as _;
use time::Duration;

/// The kinds of a package's events, and how it stands now.
type Path = (Vec<String>, Option<String>);

const STEPS: usize = 90;
const SUITES: [u16; 2] = [1, 2];

/// A reservation as its holder remembers it.
#[derive(Debug, Clone)]
struct Held {
    id: String,
    caller: usize,
    key_package_ref: Vec<u8>,
    last_resort: bool,
    group: u8,
}

struct Walk {
    world: World,
    random: StdRng,
    callers: [ClientKey; 2],
    owners: [ClientKey; 2],
    /// All that was ever uploaded, to be uploaded again.
    uploaded: Vec<(usize, Vec<u8>)>,
    held: Vec<Held>,
    /// By whom a one-time package was spent.
    spent: HashMap<Vec<u8>, String>,
}

impl Walk {
    fn replica(&mut self) -> KeyPool {
        if self.random.random() { self.world.a.clone() } else { self.world.b.clone() }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..20 => self.upload().await,
            20..55 => self.reserve().await,
            55..70 => self.spend().await,
            70..79 => self.release().await,
            79..82 => self.revoke().await,
            82..92 => {
                let seconds = *[1, 20, 60, 600, 4000, 40_000].choose(&mut self.random).unwrap();
                self.world.pass(seconds);
            }
            _ => {
                let batch = self.random.random_range(1..4);
                let policy = SweepPolicy { batch, ..SweepPolicy::default() };
                self.replica().sweep(&policy).await.unwrap();
            }
        }
    }

    async fn upload(&mut self) {
        let at = self.random.random_range(0..2);
        let owner = self.owners[at].clone();
        let mut batch = Vec::new();
        for _ in 0..self.random.random_range(1..5) {
            let suite = *SUITES.choose(&mut self.random).unwrap();
            let lifetime = self.random.random_range(10..100_000);
            let now = self.world.now();
            let forge = Forge::new(suite, owner.user.as_str()).lifetime(now - 60, now + lifetime);
            let last_resort = self.random.random_range(0..6) == 0;
            let forge = if last_resort { forge.extension(0x000a, b"") } else { forge };
            batch.push(forge.build());
        }
        if let Some((_, old)) = self.uploaded.choose(&mut self.random) {
            batch.push(old.clone());
        }
        let results =
            self.replica().upload(&owner, batch.clone(), UploadMode::Add).await.unwrap().0;
        for (bytes, result) in batch.into_iter().zip(results) {
            if verdict(&result) == Ok(false) {
                assert!(!self.uploaded.iter().any(|(_, known)| *known == bytes), "stored twice");
                self.uploaded.push((at, bytes));
            }
        }
    }

    async fn reserve(&mut self) {
        let caller = self.random.random_range(0..2);
        let mut request = match self.random.random_range(0..3) {
            0 => ask(&[&self.owners[0], &self.owners[1]]),
            n => ask(&[&self.owners[n - 1]]),
        };
        let group_number = self.random.random_range(1..3);
        request.group_id = group(group_number);
        request.cipher_suite = CipherSuite(*SUITES.choose(&mut self.random).unwrap());
        request.ttl = Some(Duration::seconds(self.random.random_range(1..120)));
        request.last_resort = self.random.random();
        request.all_or_nothing = self.random.random();
        let got = self.replica().reserve(&self.callers[caller], &request).await;
        let results = match got {
            Ok(results) => results,
            Err(Error::PoolExhausted | Error::NoCompatibleKeyPackage) => return,
            Err(other) => panic!("{other:?}"),
        };
        let again = self.replica().reserve(&self.callers[caller], &request).await.unwrap();
        for (one, other) in results.into_iter().zip(again) {
            match (one.outcome, other.outcome) {
                (Ok(got), Ok(again)) => {
                    assert_eq!((&got.id, got.expires_at), (&again.id, again.expires_at));
                    let key_package_ref = got.key_package_ref.0;
                    assert!(
                        !self.spent.contains_key(&key_package_ref),
                        "issued after it was spent"
                    );
                    assert!(got.not_after >= self.clock_now() + Duration::hours(1));
                    let (id, last_resort) = (got.id, got.last_resort);
                    self.held.push(Held {
                        id,
                        caller,
                        key_package_ref,
                        last_resort,
                        group: group_number,
                    });
                }
                (Err(one), Err(other)) => assert_eq!(one, other),
                other => panic!("a retry changed the answer: {other:?}"),
            }
        }
    }

    fn clock_now(&self) -> time::OffsetDateTime {
        keypool_service::domain::clock::Clock::now(&self.world.clock)
    }

    async fn spend(&mut self) {
        let Some(held) = self.held.choose(&mut self.random).cloned() else { return };
        let wrong_group = self.random.random_range(0..8) == 0;
        let number = if wrong_group { held.group + 10 } else { held.group };
        let caller = self.callers[held.caller].clone();
        let ids = [held.id.clone()];
        match self.replica().spend(&caller, &ids, &group(number)).await {
            Ok(spent) => {
                assert!(!wrong_group);
                assert_eq!(spent[0].key_package_ref.0, held.key_package_ref);
                if !held.last_resort {
                    let by = self.spent.entry(held.key_package_ref).or_insert(held.id.clone());
                    assert_eq!(*by, held.id, "spent by two reservations");
                }
            }
            Err(Error::GroupMismatch) => assert!(wrong_group),
            Err(Error::ReservationLost | Error::ReservationNotHeld) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn release(&mut self) {
        let Some(held) = self.held.choose(&mut self.random).cloned() else { return };
        let caller = self.callers[held.caller].clone();
        match self.replica().release(&caller, &[held.id]).await {
            Ok(_) | Err(Error::ReservationNotHeld) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn revoke(&mut self) {
        let owner = self.owners[self.random.random_range(0..2)].clone();
        let refs = self.held.iter().map(|held| KeyPackageRef(held.key_package_ref.clone()));
        let selection = match self.random.random_range(0..4) {
            0 => Selection::All,
            _ => Selection::Refs(refs.collect()),
        };
        self.replica().revoke(&owner, None, selection).await.unwrap();
    }

    async fn check(&mut self, burns: bool) {
        let pool = &self.world.database.pool;
        // No ref lives twice, nor lives on after it ended.
        let twice = "SELECT count(*) - count(DISTINCT key_package_ref) FROM (
                         SELECT key_package_ref FROM package UNION ALL
                         SELECT key_package_ref FROM tombstone UNION ALL
                         SELECT key_package_ref FROM last_resort) r";
        assert_eq!(self.world.number(twice).await, 0);
        // What was uploaded is live, or in one of the ends.
        let lost = "SELECT count(*) FROM pool_suite u
            WHERE uploaded <> expired + revoked + burned + forgotten
                + (SELECT count(*) FROM package k WHERE (k.bucket, k.pool_id, k.cipher_suite)
                                                      = (u.bucket, u.pool_id, u.cipher_suite))
                + (SELECT count(*) FROM tombstone b WHERE (b.bucket, b.pool_id, b.cipher_suite)
                        = (u.bucket, u.pool_id, u.cipher_suite) AND state = 'spent')";
        assert_eq!(self.world.number(lost).await, 0);
        // A reserved package is in its holder's draw, or nobody would find it when it lapses.
        let unknown = "SELECT count(*) FROM package k
            WHERE state = 'reserved' AND NOT EXISTS (
                SELECT FROM draw d, unnest(d.open) o
                WHERE (d.bucket, d.pool_id, d.caller) = (k.bucket, k.pool_id, k.holder)
                  AND (o.cipher_suite, o.seq, o.generation)
                    = (k.cipher_suite, k.seq, k.generation))";
        assert_eq!(self.world.number(unknown).await, 0);

        // The status says what the rows say.
        for owner in &self.owners {
            let rows = sqlx::query(
                "SELECT u.cipher_suite,
                        count(*) FILTER (WHERE k.not_after > $1 AND k.state = 'reserved'
                                           AND k.expires_at > $1) AS reserved,
                        count(*) FILTER (WHERE k.not_after > $1 AND (k.state = 'available'
                                           OR (k.expires_at <= $1 AND NOT $2
                                               AND k.revoked_at IS NULL))) AS available,
                        u.expired + count(*) FILTER (WHERE k.not_after <= $1) AS expired,
                        (SELECT count(*) FROM tombstone b
                         WHERE (b.bucket, b.pool_id, b.cipher_suite)
                             = (u.bucket, u.pool_id, u.cipher_suite) AND b.state = 'spent') AS spent
                 FROM pool p JOIN pool_suite u USING (bucket, pool_id)
                 LEFT JOIN package k USING (bucket, pool_id, cipher_suite)
                 WHERE p.user_id = $3
                 GROUP BY u.bucket, u.pool_id, u.cipher_suite ORDER BY u.cipher_suite",
            )
            .bind(self.clock_now())
            .bind(burns)
            .bind(owner.user.as_str())
            .fetch_all(pool)
            .await
            .unwrap();
            let status = self.world.a.status(owner).await.unwrap().cipher_suites;
            let shown = status.iter().map(|s| {
                let c = &s.counts;
                let suite = i32::from(c.cipher_suite.0);
                (
                    suite,
                    i64::from(c.available),
                    i64::from(c.reserved),
                    c.expired as i64,
                    c.spent as i64,
                )
            });
            let counted = rows.iter().map(|r| {
                (
                    r.get("cipher_suite"),
                    r.get("available"),
                    r.get("reserved"),
                    r.get("expired"),
                    r.get("spent"),
                )
            });
            assert_eq!(
                shown.collect::<Vec<_>>(),
                counted.collect::<Vec<(i32, i64, i64, i64, i64)>>()
            );
        }
        self.check_events().await;
    }

    /// Every package's events are a path through the state diagram, and the last one is where it
    /// stands.
    async fn check_events(&self) {
        let rows = sqlx::query(
            "SELECT e.pool_id, e.cipher_suite, e.seq, e.kind, e.generation,
                    CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                         WHEN k.seq IS NOT NULL AND k.state = 'reserved' THEN 'reserved'
                         WHEN k.seq IS NOT NULL THEN coalesce(k.returned, 'uploaded')
                         ELSE b.state END AS stands
             FROM event e
             LEFT JOIN package k USING (bucket, pool_id, cipher_suite, seq)
             LEFT JOIN tombstone b USING (bucket, pool_id, cipher_suite, seq)
             WHERE NOT (e.generation = 0 AND e.holder IS NOT NULL)
               AND NOT EXISTS (SELECT FROM last_resort l
                               WHERE (l.pool_id, l.cipher_suite, l.seq)
                                   = (e.pool_id, e.cipher_suite, e.seq))
             ORDER BY e.at, e.generation, e.xmin::text::bigint, e.ctid",
        )
        .fetch_all(&self.world.database.pool)
        .await
        .unwrap();
        let mut paths: BTreeMap<(i64, i32, i64), Path> = BTreeMap::new();
        let mut generations = HashSet::new();
        for row in rows {
            let key = (row.get("pool_id"), row.get("cipher_suite"), row.get("seq"));
            let kind: String = row.get("kind");
            if kind == "reserved" {
                assert!(generations.insert((key, row.get::<i32, _>("generation"))));
            }
            let path = paths.entry(key).or_default();
            path.0.push(kind);
            path.1 = row.get("stands");
        }
        for (key, (path, stands)) in paths {
            assert_eq!(path[0], "uploaded", "{key:?} {path:?}");
            for pair in path.windows(2) {
                let next: &[&str] = match pair[0].as_str() {
                    "uploaded" | "released" => &["reserved", "expired", "revoked"],
                    "reserved" => &["spent", "released", "lapsed", "burned", "expired", "revoked"],
                    "lapsed" => &["reserved", "spent", "expired", "revoked"],
                    "burned" => &["spent"],
                    "revoked" => &["spent", "released", "lapsed", "expired"],
                    _ => &[],
                };
                assert!(next.contains(&pair[1].as_str()), "{key:?} {path:?}");
            }
            // What is revoked is not issued again; its reservation may still end in its own way.
            let revoked = path.iter().position(|kind| kind == "revoked");
            let after = revoked.map_or(&[][..], |at| &path[at + 1..]);
            assert!(
                after.len() <= 1 && !after.contains(&"reserved".to_owned()),
                "{key:?} {path:?}"
            );
            match stands.as_deref() {
                Some("revoked") => assert!(revoked.is_some(), "{key:?} {path:?}"),
                Some(stands) => assert_eq!(path.last().unwrap(), stands, "{key:?} {path:?}"),
                None => {}
            }
        }
    }
}

async fn walk(seed: u64, lapse: LapsePolicy) {
    let world = World::with(PoolPolicy { lapse, hard_cap: 12, ..PoolPolicy::default() }).await;
    let mut walk = Walk {
        world,
        random: StdRng::seed_from_u64(seed),
        callers: [client("alice", "1"), client("eve", "1")],
        owners: [client("bob", "1"), client("carol", "1")],
        uploaded: Vec::new(),
        held: Vec::new(),
        spent: HashMap::new(),
    };
    for _ in 0..STEPS {
        walk.step().await;
        walk.check(lapse == LapsePolicy::Burn).await;
    }
    // The walk went somewhere.
    let kinds = walk.world.texts("SELECT DISTINCT kind FROM event").await;
    assert!(kinds.len() >= 6, "{kinds:?}");
}

#[tokio::test]
async fn by_policy_return() {
    for seed in 0..2 {
        eprintln!("seed {seed}");
        walk(seed, LapsePolicy::Return).await;
    }
}

#[tokio::test]
async fn by_policy_burn() {
    for seed in 10..12 {
        eprintln!("seed {seed}");
        walk(seed, LapsePolicy::Burn).await;
    }
}
