//! Whether keypool stays as fast as it is: with ever more owners, and after much was drawn.

use std::time::Duration;

use keypool_testing::plans;
use sqlx::{Connection as _, PgConnection};

use crate::{
    arguments::Arguments,
    callers::Then,
    load::Stretch,
    postgres::{Database, Postgres},
    report::Row,
    sample::Sample,
    site::{Plan, Site},
};

/// Connections that growth is measured at.
const CONNECTIONS: usize = 64;

/// The rows `growth_reserve`, one for each size and beside the smallest, and `churn_reserve`,
/// beside one of the same size that is as it was filled.
pub(crate) async fn rows(arguments: &Arguments, postgres: &Postgres) -> anyhow::Result<Vec<Row>> {
    let mut sizes = arguments.sizes();
    sizes.sort_unstable();
    let Some((&smallest, larger)) = sizes.split_first() else { return Ok(Vec::new()) };
    let mut smallest = Growing::open(arguments, postgres, smallest, true).await?;
    println!("\nHow Postgres reads the tables:");
    smallest.plans.iter().for_each(|plan| println!("  {plan}"));
    let mut samples = Vec::new();
    for _ in 0..arguments.rounds() {
        samples.push(reserve(arguments.seconds(), &mut smallest.site).await?);
    }
    let mut rows = vec![smallest.row(&samples, &samples)];
    for &owners in larger {
        // One after the other: what is left to do for a large one is not to fall on the next.
        let mut growing = Growing::open(arguments, postgres, owners, false).await?;
        smallest.compare_plans(&growing);
        let (mut samples, mut beside) = (Vec::new(), Vec::new());
        for round in 1..=arguments.rounds() {
            beside.push(reserve(arguments.seconds(), &mut smallest.site).await?);
            samples.push(reserve(arguments.seconds(), &mut growing.site).await?);
            eprintln!("growth: {owners} owners, round {round} of {}", arguments.rounds());
        }
        rows.push(growing.row(&samples, &beside));
    }
    rows.push(churn(arguments, postgres, &mut smallest.site).await?);
    Ok(rows)
}

/// One of the sizes.
struct Growing {
    site: Site,
    settled: Sample,
    plans: Vec<plans::Plan>,
}

impl Growing {
    /// Fills it, and draws so often from each owner as was asked for. The first time a page is changed
    /// after a checkpoint, it goes to the WAL whole. With many owners a short run would measure little
    /// else, which in operation is spread over the time between two checkpoints.
    async fn open(
        arguments: &Arguments,
        postgres: &Postgres,
        owners: u32,
        renewable: bool,
    ) -> anyhow::Result<Self> {
        let plan = Plan { owners, renewable, settings: &arguments.set, tls: arguments.tls };
        let mut site = Site::open(postgres, &format!("owners_{owners}"), &plan).await?;
        println!("\n{owners} owners\n{}", sizes_of_tables(&site.database).await?);
        let mut connection = PgConnection::connect(&site.database.url).await?;
        let plans = plans::all(&mut connection).await;
        connection.close().await?;
        let mut settled = Sample::default();
        for draw in 1..=arguments.warm_up() {
            let calls = Stretch::of(u64::from(owners));
            let sample = site.adders(CONNECTIONS, calls, Then::Keep, None).await?;
            eprintln!(
                "growth: {owners} owners, draw {draw} of {} from each: {:.0}/s, {:.0} bytes of WAL",
                arguments.warm_up(),
                sample.rate(),
                sample.cost_each().wal_bytes,
            );
            settled.join(sample);
        }
        // Now, and not by the server's own choice while something is measured.
        site.database.run(&["VACUUM (ANALYZE)".to_owned()]).await?;
        Ok(Self { site, settled, plans })
    }

    fn row(&self, samples: &[Sample], smallest: &[Sample]) -> Row {
        let mut row =
            Row::new("growth_reserve", CONNECTIONS, samples, smallest).at(self.site.owners);
        row.faults.extend(self.settled.refusals());
        row.faults.extend(self.settled.faults.clone());
        row
    }

    /// Says which statements Postgres runs in another way at another size.
    fn compare_plans(&self, other: &Self) {
        let pairs = other.plans.iter().zip(&self.plans);
        let others: Vec<_> = pairs.filter(|(plan, own)| plan.scans() != own.scans()).collect();
        println!("{} owners: {} of {} differ", other.site.owners, others.len(), other.plans.len());
        others.iter().for_each(|(plan, _)| println!("  {plan}"));
    }
}

async fn reserve(seconds: f64, site: &mut Site) -> anyhow::Result<Sample> {
    let stretch = Stretch::lasting(Duration::from_secs_f64(seconds));
    site.adders(CONNECTIONS, stretch, Then::Keep, None).await
}

/// Reserves and spends as often as was asked for, the pools refilled as needed, and measures then.
async fn churn(
    arguments: &Arguments,
    postgres: &Postgres,
    fresh: &mut Site,
) -> anyhow::Result<Row> {
    let plan = Plan {
        owners: fresh.owners,
        renewable: false,
        settings: &arguments.set,
        tls: arguments.tls,
    };
    let mut site = Site::open(postgres, "churned", &plan).await?;
    println!("\nbefore churn\n{}", sizes_of_tables(&site.database).await?);
    let mut faults = Sample::default();
    let mut pairs = 0;
    while pairs < arguments.churn() {
        site.refill(false).await?;
        let sample =
            site.adders(CONNECTIONS, Stretch::of(u64::MAX >> 1), Then::Spend, None).await?;
        pairs += sample.operations;
        eprintln!("churn: {pairs} of {} pairs, {:.0}/s", arguments.churn(), sample.rate());
        faults.faults.extend(sample.refusals());
        faults.faults.extend(sample.faults);
        if !faults.faults.is_empty() {
            break;
        }
    }
    renew(&mut site).await?;
    println!("\nafter {pairs} pairs\n{}", sizes_of_tables(&site.database).await?);
    let (mut churned, mut unchurned) = (vec![faults], Vec::new());
    for round in 0..=arguments.rounds() {
        let sample = reserve(arguments.seconds(), fresh).await?;
        let after = reserve(arguments.seconds(), &mut site).await?;
        renew(&mut site).await?;
        if round > 0 {
            unchurned.push(sample);
            churned.push(after);
        }
    }
    let faults = churned.remove(0).faults;
    let mut row = Row::new("churn_reserve", CONNECTIONS, &churned, &unchurned).at(site.owners);
    row.faults.extend(faults);
    Ok(row)
}

/// Fills the pools in one upload each, as those that were never drawn from: of what comes in several, a
/// Reserve knows less, and its pool is looked at sooner. Vacuums now what the server would while something
/// is measured; the others are vacuumed as they are filled.
async fn renew(site: &mut Site) -> anyhow::Result<()> {
    site.refill(true).await?;
    site.database.run(&["VACUUM (ANALYZE)".to_owned()]).await
}

/// The tables with their indexes and what is dead in them, the largest first.
async fn sizes_of_tables(database: &Database) -> anyhow::Result<String> {
    let rows: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT relname::text, pg_table_size(relid), pg_indexes_size(relid), n_live_tup, n_dead_tup
         FROM pg_stat_user_tables
         WHERE schemaname = 'public' AND pg_table_size(relid) > 100000
         ORDER BY 2 DESC",
    )
    .fetch_all(&database.pool)
    .await?;
    let mut lines =
        vec![format!("{:<20} {:>10} {:>10} {:>11} {:>11}", "", "KiB", "indexes", "live", "dead")];
    lines.extend(rows.into_iter().map(|(table, bytes, indexes, live, dead)| {
        let (table_kib, index_kib) = (bytes / 1024, indexes / 1024);
        format!("{table:<20} {table_kib:>10} {index_kib:>10} {live:>11} {dead:>11}")
    }));
    Ok(lines.join("\n"))
}
