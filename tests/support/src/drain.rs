//! The attack that fair share is for, played against real servers: attackers drain one pool as
//! fast as they can while honest newcomers come by. `docs/fair-share.md` has what came of it.

mod attacker;
mod newcomer;
mod owner;

use std::{collections::HashSet, time::Duration};

use anyhow::{Context as _, ensure};
use keypool_service::{domain::policy::PoolPolicy, grpc::auth::Scope, store::MIGRATOR};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{newcomer::Got, owner::Owner};
use crate::{database::TestDatabase, replicas::Replicas};

/// Whose pool is attacked.
const OWNER: &str = "owner";
const CIPHER_SUITE: u16 = 1;
/// An attack that has not come to its end this long after its time has failed.
const GRACE: Duration = Duration::from_secs(60);

/// One attack on one full pool of 32, low at 8, on two replicas and a database of its own.
#[derive(Debug, Clone)]
pub struct Attack {
    /// How many users attack. Each keeps four calls under way, spends whatever it gets at once,
    /// and takes no last resort package.
    pub attackers: usize,
    /// How many honest users come by. Each reserves once and takes a last resort package too.
    pub newcomers: usize,
    /// Whether the owner watches its pool and refills it.
    pub owner_online: bool,
    /// Whether the service holds callers to their fair share.
    pub fair_share: bool,
    /// The newcomers come at random moments of this time, and the attack lasts at least as long,
    /// and until an owner that is online has refilled the pool.
    pub length: Duration,
    /// The newcomers' time begins when the pool has refused each attacker, and not when the
    /// attack begins: by then nobody but newcomers gets a package at or below the low watermark.
    pub after_first_refusals: bool,
    /// The service's `pool.refill_spread`.
    pub refill_spread: Duration,
    /// Decides the random moments.
    pub seed: u64,
}

/// What came of the newcomers of an attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// How many users attacked.
    pub attackers: usize,
    /// Whether the owner was there to refill the pool.
    pub owner_online: bool,
    /// Whether the service held callers to their fair share.
    pub fair_share: bool,
    /// How many newcomers came.
    pub newcomers: usize,
    /// How many of them got and spent a one-time package.
    pub one_time: usize,
}

/// What came of an attack.
#[derive(Debug, Clone)]
pub struct Report {
    /// What came of the newcomers.
    pub row: Row,
    /// How many newcomers got nothing at all, not even the last resort package.
    pub turned_away: usize,
    /// How long the slowest newcomer took from its Reserve to the end of its Spend.
    pub slowest_newcomer: Duration,
    /// How many packages the attackers got.
    pub taken: usize,
    /// How many packages the owner added to the 32 that were there.
    pub refilled: usize,
}

impl Attack {
    /// Plays the attack to its end.
    ///
    /// # Errors
    /// A package was issued twice; a call failed by anything but the pool's state or the load; or
    /// the attack does not come to its end.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        let policy = PoolPolicy {
            fair_share: self.fair_share,
            refill_spread: self.refill_spread.try_into()?,
            ..PoolPolicy::default()
        };
        let replicas = Replicas::start(&database, &policy).await?;
        let played = tokio::time::timeout(self.length + GRACE, self.play(&replicas)).await;
        let report = match played {
            Ok(report) => report,
            Err(_) => Err(anyhow::anyhow!("the attack does not come to its end")),
        };
        replicas.stop().await?;
        report
    }

    async fn play(&self, replicas: &Replicas) -> anyhow::Result<Report> {
        let over = CancellationToken::new();
        // However this ends, the attackers and the owner end with it.
        let _over = over.clone().drop_guard();
        let mut owner = Owner::new(replicas.client(0, OWNER, Scope::Publish).await?)?;
        owner.fill().await?;
        let mut attackers = JoinSet::new();
        let mut refused = Vec::new();
        for n in 0..self.attackers {
            let user = format!("attacker-{n}");
            let flag = CancellationToken::new();
            refused.push(flag.clone());
            let clients = [
                replicas.client(0, &user, Scope::Reserve).await?,
                replicas.client(1, &user, Scope::Reserve).await?,
            ];
            attackers.spawn(attacker::attack(clients, flag, over.clone()));
        }
        let mut honest = Vec::new();
        for n in 0..self.newcomers {
            honest.push(replicas.client(n % 2, &format!("newcomer-{n}"), Scope::Reserve).await?);
        }
        let refilled = CancellationToken::new();
        let refilling = tokio::spawn({
            let (online, refilled, over) = (self.owner_online, refilled.clone(), over.clone());
            async move { if online { owner.refill(refilled, over).await } else { Ok(0) } }
        });
        if self.after_first_refusals {
            for flag in refused {
                flag.cancelled().await;
            }
        }
        let start = Instant::now();
        let mut newcomers = JoinSet::new();
        for (client, moment) in honest.into_iter().zip(self.moments()) {
            newcomers.spawn(newcomer::come(client, start + moment));
        }
        let newcomers: Vec<_> =
            newcomers.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
        tokio::time::sleep_until(start + self.length).await;
        if self.owner_online {
            refilled.cancelled().await;
        }
        over.cancel();

        let mut issued = HashSet::new();
        for packages in attackers.join_all().await {
            for package in packages? {
                ensure!(issued.insert(package), "a package was issued twice");
            }
        }
        let mut report = Report {
            row: Row {
                attackers: self.attackers,
                owner_online: self.owner_online,
                fair_share: self.fair_share,
                newcomers: self.newcomers,
                one_time: 0,
            },
            turned_away: 0,
            slowest_newcomer: Duration::ZERO,
            taken: issued.len(),
            refilled: refilling.await.context("the owner failed")??,
        };
        for (got, took) in newcomers {
            report.slowest_newcomer = report.slowest_newcomer.max(took);
            match got {
                Got::OneTime(package) => {
                    ensure!(issued.insert(package), "a package was issued twice");
                    report.row.one_time += 1;
                }
                Got::LastResort => {}
                Got::Nothing => report.turned_away += 1,
            }
        }
        Ok(report)
    }

    fn moments(&self) -> impl Iterator<Item = Duration> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let length = self.length;
        std::iter::repeat_with(move || length.mul_f64(random.random()))
    }
}
