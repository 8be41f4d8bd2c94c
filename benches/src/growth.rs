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
    let mut sites = Vec::new();
    for (n, &owners) in sizes.iter().enumerate() {
        let plan = Plan { owners, renewable: n == 0, settings: &arguments.set, tls: arguments.tls };
        let site = Site::open(postgres, &format!("owners_{owners}"), &plan).await?;
        println!("\n{owners} owners\n{}", sizes_of_tables(&site.database).await?);
        sites.push(site);
    }
    same_plans(&sites).await?;

    let mut settling = Vec::new();
    for site in &mut sites {
        settling.push(settle(arguments.warm_up(), site).await?);
    }
    let mut measured = vec![Vec::new(); sites.len()];
    for round in 1..=arguments.rounds() {
        for (site, samples) in sites.iter_mut().zip(&mut measured) {
            samples.push(reserve(arguments.seconds(), site).await?);
        }
        eprintln!("growth: round {round} of {}", arguments.rounds());
    }
    let smallest = measured.first().cloned().unwrap_or_default();
    let mut rows: Vec<Row> = measured
        .iter()
        .zip(&sites)
        .map(|(samples, site)| {
            Row::new("growth_reserve", CONNECTIONS, samples, &smallest).at(site.owners)
        })
        .collect();
    for (row, settling) in rows.iter_mut().zip(settling) {
        row.faults.extend(settling.refusals());
        row.faults.extend(settling.faults);
    }
    if let Some(fresh) = sites.first_mut() {
        rows.push(churn(arguments, postgres, fresh).await?);
    }
    Ok(rows)
}

/// Draws so often from each owner, however long it takes. The first time a page is changed after a
/// checkpoint, it goes to the WAL whole. With many owners a short run would measure little else, which
/// in operation is spread over the time between two checkpoints.
async fn settle(draws_each: u32, site: &mut Site) -> anyhow::Result<Sample> {
    let mut all = Sample::default();
    for draw in 1..=draws_each {
        let calls = Stretch::of(u64::from(site.owners));
        let sample = site.adders(CONNECTIONS, calls, Then::Keep, None).await?;
        eprintln!(
            "growth: {} owners, draw {draw} of {draws_each} from each: {:.0}/s, {:.0} bytes of WAL",
            site.owners,
            sample.rate(),
            sample.cost_each().wal_bytes,
        );
        all.join(sample);
    }
    Ok(all)
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
        site.refill().await?;
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
    site.refill().await?;
    println!("\nafter {pairs} pairs\n{}", sizes_of_tables(&site.database).await?);
    let (mut churned, mut unchurned) = (vec![faults], Vec::new());
    for round in 0..=arguments.rounds() {
        let sample = reserve(arguments.seconds(), fresh).await?;
        let after = reserve(arguments.seconds(), &mut site).await?;
        site.refill().await?;
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

/// Says whether Postgres runs each statement at each size as it does at the smallest.
async fn same_plans(sites: &[Site]) -> anyhow::Result<()> {
    println!("\nHow Postgres reads the tables:");
    let mut smallest = Vec::new();
    for site in sites {
        let mut connection = PgConnection::connect(&site.database.url).await?;
        let plans = plans::all(&mut connection).await;
        connection.close().await?;
        if smallest.is_empty() {
            smallest = plans;
            smallest.iter().for_each(|plan| println!("  {plan}"));
            continue;
        }
        let pairs = plans.iter().zip(&smallest);
        let others: Vec<_> = pairs.filter(|(plan, small)| plan.scans() != small.scans()).collect();
        println!("{} owners: {} of {} differ", site.owners, others.len(), plans.len());
        others.iter().for_each(|(plan, _)| println!("  {plan}"));
    }
    Ok(())
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
