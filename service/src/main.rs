//! The `keypool` command: arguments, then configuration, then what was asked for.

mod cli;

use std::{
    env,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use cli::{Cli, Command};
use keypool_service::{
    check,
    config::{Config, LogSection},
    domain::clock::{Clock as _, SystemClock},
    operate, run, telemetry,
    token::SigningKey,
};
use time::OffsetDateTime;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // One line, with all its causes.
            eprintln!("keypool: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            let config = Config::load(&args.config, env::vars_os())?;
            telemetry::init(&config.log)?;
            block_on(run::serve(config))
        }
        Command::Migrate(args) => {
            let config = Config::load(&args.config, env::vars_os())?;
            telemetry::init(&config.log)?;
            block_on(run::migrate(&config))
        }
        Command::Wait(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            telemetry::init(&config.log)?;
            block_on(run::wait(&config, args.timeout))
        }
        Command::Dev(args) => {
            telemetry::init(&LogSection::default())?;
            block_on(run::dev(&args.data, args.listen))
        }
        Command::AfterRestore(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            telemetry::init(&config.log)?;
            let until = args.until.map_or_else(|| SystemClock.now(), OffsetDateTime::from);
            let packages_from = until - args.lifetime_margin;
            block_on(operate::after_restore(&config, packages_from, args.keep_last_resort))
        }
        Command::Check(args) => run_check(&args.config),
        Command::Token(args) => {
            let key = SigningKey::load(&args.key)?;
            let token = key.mint(&args.into_request(), SystemClock.now())?;
            writeln!(io::stdout(), "{token}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Runtime::new()?.block_on(command)?;
    Ok(ExitCode::SUCCESS)
}

fn run_check(path: &Path) -> anyhow::Result<ExitCode> {
    let findings = match Config::load(path, env::vars_os()) {
        Ok(config) => {
            let mut findings = check::files(&config);
            tokio::runtime::Runtime::new()?.block_on(async {
                findings.extend(check::published_keys(&config).await);
                findings.extend(run::check_database(&config).await);
            });
            findings
        }
        Err(error) => error.findings,
    };
    let mut out = io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    if findings.is_empty() {
        writeln!(out, "{}: no problem found", path.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}
