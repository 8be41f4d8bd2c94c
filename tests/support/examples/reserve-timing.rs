//! `reserve-timing [ROUNDS]`: whether the time that a refused Reserve takes tells who exists. The
//! calls are interleaved, each pair of kinds is one that the answers do not tell apart.

use std::{
    env,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use keypool_client::{Client, Error, Reserve};
use keypool_service::{
    domain::{
        clock::{Clock as _, SystemClock},
        policy::PoolPolicy,
    },
    grpc::auth::Scope,
    store::MIGRATOR,
};
use keypool_testing::{database::TestDatabase, forge::Forge, replicas::Replicas};
use rand::seq::SliceRandom as _;

const GROUP: &[u8] = b"the group of the timing";
const SUITE: u16 = 1;

/// Users whose pools are exhausted, and adders who ask.
const POOLS: usize = 64;
const ADDERS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exhausted,
    UnknownUser,
    ExhaustedClient,
    UnknownClient,
    ClientOfUnknownUser,
}

use Kind::*;

impl Kind {
    const ALL: [Self; 5] =
        [Exhausted, UnknownUser, ExhaustedClient, UnknownClient, ClientOfUnknownUser];

    fn words(self) -> &'static str {
        match self {
            Exhausted => "a user whose only pool is exhausted",
            UnknownUser => "an unknown user",
            ExhaustedClient => "a client whose pool is exhausted",
            UnknownClient => "an unknown client of that user",
            ClientOfUnknownUser => "a client of an unknown user",
        }
    }

    fn request(self, round: usize) -> Reserve {
        let request = Reserve::new(GROUP, SUITE);
        // Names are as long as each other.
        let (known, unknown) = (known(round % POOLS), format!("stranger-{round:06}"));
        match self {
            Exhausted => request.target(known),
            UnknownUser => request.target(unknown),
            ExhaustedClient => request.target_clients(known, ["phone"]),
            UnknownClient => request.target_clients(known, ["piano"]),
            ClientOfUnknownUser => request.target_clients(unknown, ["phone"]),
        }
    }
}

/// What the answers do not tell apart.
const PAIRS: [(Kind, Kind); 3] = [
    (Exhausted, UnknownUser),
    (ExhaustedClient, UnknownClient),
    (ExhaustedClient, ClientOfUnknownUser),
];

fn known(number: usize) -> String {
    format!("neighbor-{number:06}")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let rounds: usize = match &env::args().skip(1).collect::<Vec<String>>()[..] {
        [] => 2000,
        [rounds] => rounds.parse().context("ROUNDS is a number")?,
        _ => bail!("usage: reserve-timing [ROUNDS]"),
    };
    ensure!(rounds >= 100, "at least 100 rounds");
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let replicas = Replicas::start(&database, &PoolPolicy::default()).await?;
    exhaust_pools(&replicas).await?;
    let mut adders = Vec::new();
    for number in 0..ADDERS {
        adders.push(replicas.client(0, &format!("adder-{number}"), Scope::Reserve).await?);
    }
    let mut times: [Vec<Duration>; 5] = Default::default();
    let mut random = rand::rng();
    for round in 0..rounds + ADDERS {
        let mut kinds: Vec<usize> = (0..Kind::ALL.len()).collect();
        kinds.shuffle(&mut random);
        for kind in kinds {
            let took = timed(&adders[round % ADDERS], &Kind::ALL[kind].request(round)).await?;
            // The first call of each adder has its token verified.
            if round >= ADDERS {
                times[kind].push(took);
            }
        }
    }
    replicas.stop().await?;
    report(times)
}

/// Each has had one package, which is spent.
async fn exhaust_pools(replicas: &Replicas) -> anyhow::Result<()> {
    let drainer = replicas.client(1, "drainer", Scope::Reserve).await?;
    let now = u64::try_from(SystemClock.now().unix_timestamp())?;
    for number in 0..POOLS {
        let user = known(number);
        let owner = replicas.client(1, &user, Scope::Publish).await?;
        owner.upload([Forge::new(SUITE, &user).valid_around(now).build()]).await?;
        let taken = drainer.reserve(&Reserve::new(GROUP, SUITE).target(user)).await?;
        let ids: Vec<String> = taken.reservations().map(|it| it.reservation_id.clone()).collect();
        ensure!(ids.len() == 1, "a package for the drainer");
        drainer.spend(GROUP, ids).await?;
    }
    Ok(())
}

async fn timed(adder: &Client, request: &Reserve) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let answer = adder.reserve(request).await;
    let took = began.elapsed();
    match answer {
        Err(Error::PoolExhausted(_)) => Ok(took),
        other => bail!("not POOL_EXHAUSTED: {other:?}"),
    }
}

fn report(mut times: [Vec<Duration>; 5]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "| Reserve from | calls | median | p90 |\n|---|--:|--:|--:|")?;
    for (kind, times) in Kind::ALL.iter().zip(&mut times) {
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
        writeln!(out, "| {} | {} | {} us | {} us |", kind.words(), times.len(), at(50), at(90))?;
    }
    writeln!(
        out,
        "\n| is slower | than | median over median | of two calls it is the slower one | z |\n\
         |---|---|--:|--:|--:|"
    )?;
    for (one, other) in PAIRS {
        let of = |kind: Kind| &times[Kind::ALL.iter().position(|it| *it == kind).unwrap_or(0)];
        let median = |times: &[Duration]| times[(times.len() - 1) / 2].as_secs_f64();
        let (share, z) = rank_sum(of(one), of(other));
        writeln!(
            out,
            "| {} | {} | {:.3} | {:.1} % | {z:.1} |",
            one.words(),
            other.words(),
            median(of(one)) / median(of(other)),
            100.0 * share
        )?;
    }
    writeln!(
        out,
        "\nBlind guessing is 50 %. |z| is that of the Mann-Whitney test: below 2 these calls show no \
         difference."
    )?;
    Ok(())
}

/// In which share of all pairs the first is the greater one, and how many standard deviations the
/// Mann-Whitney statistic is from what equal distributions give. Both are sorted.
fn rank_sum(first: &[Duration], second: &[Duration]) -> (f64, f64) {
    let mut greater = 0.0;
    for time in first {
        let below = second.partition_point(|it| it < time);
        let equal = second[below..].partition_point(|it| it == time);
        greater += below as f64 + equal as f64 / 2.0;
    }
    let (n, m) = (first.len() as f64, second.len() as f64);
    let deviation = (n * m * (n + m + 1.0) / 12.0).sqrt();
    (greater / (n * m), (greater - n * m / 2.0) / deviation)
}
