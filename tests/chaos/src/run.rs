//! One run of one scenario.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use keypool_service::domain::ids::{ClientId, ClientKey, UserId};
use keypool_testing::server::ServerOptions;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    check::{Rules, Violation, check},
    cluster::{Cluster, Gate},
    database::Database,
    farewell,
    fault::{Faults, Scenario},
    history::{Micros, Op, Recorder, now},
    packages::Maker,
    party::Cast,
    recovery::{Recovery, recovery},
    tables::Tables,
    work::{Adder, Device, Devices, Stock},
};

const REPLICAS: usize = 3;
/// Pools that many adders share, and pools that one adder has for itself.
pub(crate) const SHARED: u16 = 6;
const LONE: u16 = 6;
/// Adders who call by the SDK, and by hand, at the shared pools.
const BY_SDK: u16 = 18;
const BY_HAND: u16 = 6;
/// The names that an adder of a lone pool has.
const NAMES: u16 = 3;
/// What the checker has to know of the service's settings.
const LOW_WATERMARK: usize = 8;
const MAX_OPEN: usize = 2;
const HARD_CAP: usize = 200;
const HOUR: Micros = 3_600_000_000;
/// A call is given up by the service after 10 s, a statement by Postgres after 5 s.
const HORIZON: Micros = 20_000_000;
/// How long the sweeper may take to end what has lapsed when nobody works any more.
const SWEPT_WITHIN: Duration = Duration::from_secs(60);
/// The database has to be seen idle so many times before it is taken to be.
const IDLE_LOOKS: usize = 5;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which scenario.
    pub scenario: Scenario,
    /// For how long clients work.
    pub length: Duration,
    /// They work until there are so many calls, too.
    pub least: usize,
    /// How long an application waits for a call, retries and all.
    pub deadline: Duration,
    /// What the random choices come from.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// What the random choices came from.
    pub seed: u64,
    /// Whether lapsed reservations burned.
    pub burns: bool,
    /// How long clients worked, in seconds.
    pub seconds: u64,
    /// Calls.
    pub operations: usize,
    /// What was wrong.
    pub violations: Vec<String>,
    /// What was looked at, and how many.
    pub checked: BTreeMap<&'static str, usize>,
    /// Calls by how they were answered.
    pub answers: BTreeMap<String, usize>,
    /// When faults struck, from begin to end, in microseconds since 1970.
    pub faults: Vec<(Micros, Micros)>,
    /// What applications noticed.
    pub recovery: Recovery,
}

/// What a run leaves for the checker.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Every call.
    pub history: Vec<Op>,
    /// The tables in the end.
    pub tables: Tables,
    /// What the checker has to know.
    pub rules: Rules,
    /// Calls by how they were answered.
    pub answers: BTreeMap<String, usize>,
}

/// Runs a scenario and checks it. The history is written to `file`, too.
///
/// # Errors
/// [`crate::fault::NotRun`], or whatever went wrong besides what was meant to.
pub async fn run(plan: &Plan, file: &Path) -> anyhow::Result<Outcome> {
    let evidence = gather(plan, file).await?;
    let Evidence { history, tables, rules, answers } = evidence;
    let report = check(&history, &tables, &rules);
    Ok(Outcome {
        scenario: plan.scenario.name(),
        seed: plan.seed,
        burns: rules.burns,
        seconds: plan.length.as_secs(),
        operations: history.len(),
        violations: report.violations.iter().map(Violation::to_string).collect(),
        checked: report.checked,
        answers,
        recovery: recovery(&history, &rules.faults, rules.quiet_since),
        faults: rules.faults,
    })
}

/// Runs a scenario.
///
/// # Errors
/// As [`run`].
pub async fn gather(plan: &Plan, file: &Path) -> anyhow::Result<Evidence> {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    // In one of four runs; of some with seeds that follow each other, surely.
    let burns = plan.seed % 4 == 3;
    let folder = tempfile::Builder::new()
        .prefix("keypool-chaos-")
        .permissions(Permissions::from_mode(0o711))
        .tempdir()?;
    let options = ServerOptions::default()
        .set("pool.hard_cap", HARD_CAP)
        .set("pool.low_watermark", LOW_WATERMARK)
        .set("pool.max_open_reservations_per_pool", MAX_OPEN)
        .text("pool.lapse", if burns { "burn" } else { "return" })
        .text("sweeper.interval", "1s")
        .set("limits.rate_limits", false);
    let faults_rng = StdRng::seed_from_u64(rng.random());
    let prepared =
        Faults::prepare(plan.scenario, faults_rng, folder.path(), REPLICAS, options).await?;
    let (mut faults, mut cluster) = prepared;
    cluster.deadline = plan.deadline;

    let gate = Gate { cast: Arc::new(cast()), recorder: Arc::new(Recorder::to(file)?) };
    let stop = CancellationToken::new();
    let mut workers = workers(&cluster, &gate, &mut rng, &stop)?;
    let end = Instant::now() + plan.length;
    let mut struck = Vec::new();
    let outcome = loop {
        let calm = faults.calm();
        let next = Instant::now() + calm;
        let next = if Instant::now() < end { next.min(end) } else { next };
        tokio::select! {
            ended = workers.join_next() => {
                break ended.context("no worker")?.context("a worker panicked").flatten();
            }
            () = sleep(next.saturating_duration_since(Instant::now())) => {}
        }
        let enough = Instant::now() >= end && gate.recorder.len() >= plan.least;
        if enough && (!struck.is_empty() || plan.scenario == Scenario::None) {
            break Ok(());
        }
        if faults.strikes_again() || (struck.is_empty() && plan.scenario != Scenario::None) {
            faults.follow(&cluster).await?;
            struck.push(faults.strike(&mut cluster).await?);
        }
    };
    outcome?;
    stop.cancel();
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")??;
    }
    until_idle(&cluster.database).await?;

    let calm_since = now();
    farewell::reserve(&cluster, &gate).await?;
    until_idle(&cluster.database).await?;
    until_swept(&cluster.database).await?;
    let quiet_since = now();
    farewell::statuses(&cluster, &gate).await?;
    let mut connection = cluster.database.connect().await?;
    let tables = Tables::read(&mut connection).await?;
    drop(connection);
    let answers = gate.recorder.answers();
    let callers = gate.cast.callers.iter().map(digest).collect::<anyhow::Result<_>>()?;
    let rules = Rules {
        pools: gate.cast.pools.clone(),
        callers,
        low_watermark: LOW_WATERMARK,
        max_open: MAX_OPEN,
        hard_cap: HARD_CAP,
        min_lifetime: HOUR,
        burns,
        horizon: HORIZON,
        erased: struck.first().copied().filter(|_| plan.scenario == Scenario::RestoreBackup),
        faults: struck,
        replicas: u8::try_from(REPLICAS)?,
        calm_since,
        quiet_since,
    };
    // The replicas before their database.
    cluster.replicas.clear();
    drop(cluster);
    drop(faults);
    Ok(Evidence { history: gate.recorder.finish()?, tables, rules, answers })
}

/// The names of pools and callers.
fn cast() -> Cast {
    let pools = (0..SHARED + LONE).map(|n| (format!("owner{n}"), "phone".to_owned()));
    let shared = (0..BY_SDK + BY_HAND).map(|n| (format!("adder{n}"), "laptop".to_owned()));
    let lone = (0..LONE * NAMES).map(|n| (format!("lone{n}"), "laptop".to_owned()));
    Cast { pools: pools.collect(), callers: shared.chain(lone).collect() }
}

/// Whether a pool always has more than its callers can take.
pub(crate) fn is_ample(pool: u16) -> bool {
    pool.is_multiple_of(3)
}

fn digest((user, client): &(String, String)) -> anyhow::Result<[u8; 16]> {
    let key = ClientKey { user: UserId::parse(user)?, client: ClientId::parse(client)? };
    Ok(key.digest().0)
}

fn workers(
    cluster: &Cluster,
    gate: &Gate,
    rng: &mut StdRng,
    stop: &CancellationToken,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut workers = JoinSet::new();
    let mut worker = 0..;
    let mut next = || worker.next().context("a number");
    let mut fork = || StdRng::seed_from_u64(rng.random());

    for keeper in 0..6 {
        let number = next()?;
        let mut devices = Vec::new();
        for pool in (0..SHARED + LONE).filter(|pool| pool % 6 == keeper) {
            let name = &gate.cast.pools[usize::from(pool)];
            let party = if pool < SHARED {
                gate.by_sdk(cluster, number, pool, name)?
            } else {
                gate.by_hand(cluster, number, pool, name)?
            };
            let maker = Maker::new(&name.0, &name.1);
            let last_resort = pool % 2 == 0;
            let stock = if is_ample(pool) { Stock::AMPLE } else { Stock::SCARCE };
            let latest = VecDeque::new();
            devices.push(Device { party, maker, last_resort, stock, latest });
        }
        workers.spawn(Devices { devices, rng: fork() }.work(stop.clone()));
    }
    for caller in 0..BY_SDK + BY_HAND {
        let name = &gate.cast.callers[usize::from(caller)];
        let number = next()?;
        let party = if caller < BY_SDK {
            gate.by_sdk(cluster, number, caller, name)?
        } else {
            gate.by_hand(cluster, number, caller, name)?
        };
        let pools = (0..SHARED).collect();
        let adder = Adder { parties: vec![party], pools, rng: fork(), kept: VecDeque::new() };
        workers.spawn(adder.work(stop.clone()));
    }
    for lone in 0..LONE {
        let number = next()?;
        let mut parties = Vec::new();
        for name in 0..NAMES {
            let caller = BY_SDK + BY_HAND + lone * NAMES + name;
            let names = &gate.cast.callers[usize::from(caller)];
            parties.push(gate.by_hand(cluster, number, caller, names)?);
        }
        let pools = vec![SHARED + lone];
        let adder = Adder { parties, pools, rng: fork(), kept: VecDeque::new() };
        workers.spawn(adder.work(stop.clone()));
    }
    Ok(workers)
}

/// What clients gave up waiting for may still be on its way.
async fn until_idle(database: &Database) -> anyhow::Result<()> {
    for _ in 0..IDLE_LOOKS {
        let idle = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                    WHERE application_name = 'keypool' AND state <> 'idle')";
        database.until(idle).await?;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// What lapsed while clients worked is for the sweeper to end; a Release may have left it to that.
async fn until_swept(database: &Database) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let idle_since: String =
        sqlx::query_scalar("SELECT clock_timestamp()::text").fetch_one(&mut connection).await?;
    let swept = format!(
        "SELECT NOT EXISTS (SELECT FROM package
         WHERE state = 'reserved' AND expires_at <= '{idle_since}')"
    );
    let swept = timeout(SWEPT_WITHIN, database.until(&swept)).await;
    swept.context("reservations that lapsed are not swept")?
}
