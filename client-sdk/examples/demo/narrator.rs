//! What the demo prints.

use anyhow::{Context as _, Result, bail, ensure};
use keypool_client::{
    Client, Error,
    v1::{ErrorReason, Health, LastResortStatus},
};

/// Opens a chapter.
pub(crate) fn headline(text: &str) {
    println!("\n== {text}");
}

/// Says a sentence.
pub(crate) fn tell(text: &str) {
    println!("   {text}");
}

/// Checks that a call was refused for the promised reason, and shows how.
pub(crate) fn refused<T>(result: Result<T, Error>, promised: ErrorReason) -> Result<()> {
    let promised_name = promised.wire_name();
    match result {
        Ok(_) => bail!("this should have been refused with {promised_name}"),
        Err(error) => match error.rejection().filter(|it| it.reason == Some(promised)) {
            Some(rejection) => {
                tell(&format!("Refused with {promised_name}: {}", rejection.message));
                Ok(())
            }
            None => {
                Err(error).context(format!("this should have been refused with {promised_name}"))
            }
        },
    }
}

/// The figures of a pool, for the demo's one cipher suite.
pub(crate) struct Pool {
    pub(crate) available: u32,
    pub(crate) reserved: u32,
    pub(crate) spent: u64,
    pub(crate) last_resort: Option<LastResortStatus>,
    pub(crate) recommended_upload: u32,
    pub(crate) health: Health,
}

/// Prints a pool's status as a table.
pub(crate) async fn show_pool(owner: &str, keypool: &Client) -> Result<Pool> {
    let status = keypool.pool_status().await?;
    let health = status.health();
    ensure!(status.cipher_suites.len() == 1, "the pool should hold one cipher suite");
    let suite = status.cipher_suites.into_iter().next().context("the pool is empty")?;
    let last_resort = match &suite.last_resort {
        Some(package) => format!("kept, issued {}x", package.times_issued),
        None => "none".into(),
    };
    let health_name = health.as_str_name().trim_start_matches("HEALTH_");
    println!(
        "   | pool  | available | reserved | spent | last resort     | health    | upload now |"
    );
    println!(
        "   | {owner:<5} | {:>9} | {:>8} | {:>5} | {last_resort:<15} | {health_name:<9} | {:>10} |",
        suite.available, suite.reserved, suite.spent, suite.recommended_upload,
    );
    Ok(Pool {
        available: suite.available,
        reserved: suite.reserved,
        spent: suite.spent,
        last_resort: suite.last_resort,
        recommended_upload: suite.recommended_upload,
        health,
    })
}
