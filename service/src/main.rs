//! The `keypool` command: arguments, then configuration, then what was asked for.

mod cli;

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use cli::{CheckArgs, Cli, Command, ConfigArgs, MigrateArgs, PoolCommand, ShowArgs};
use keypool_service::{
    check::{self, Report},
    config::{self, Config, LogSection},
    domain::clock::{Clock as _, SystemClock},
    operate::{self, pools},
    run::{self, LockPatience},
    telemetry::{self, Traces},
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
        Command::Serve(args) => serve(&args),
        Command::Migrate(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            telemetry::init(&config.log, None)?;
            let MigrateArgs { lock_timeout, timeout: give_up_after, .. } = args;
            block_on(run::migrate(&config, LockPatience { lock_timeout, give_up_after }))
        }
        Command::Wait(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            telemetry::init(&config.log, None)?;
            block_on(run::wait(&config, args.timeout))
        }
        Command::Dev(args) => {
            telemetry::init(&LogSection::default(), None)?;
            block_on(run::dev(&args.data, args.listen))
        }
        Command::AfterRestore(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            telemetry::init(&config.log, None)?;
            let until = args.until.map_or_else(|| SystemClock.now(), OffsetDateTime::from);
            let packages_from = until - args.lifetime_margin;
            block_on(operate::after_restore(&config, packages_from, args.keep_last_resort))
        }
        Command::Check(args) => run_check(&args),
        Command::Pool(command) => pool(command),
        Command::ConfigReference => {
            write!(io::stdout(), "{}", config::reference())?;
            Ok(ExitCode::SUCCESS)
        }
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

/// Serves, with traces if they are wanted and with logs whose filter follows the file.
fn serve(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config, env::vars_os())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let traces = Traces::start(&config.traces)?;
    let filter = telemetry::init(&config.log, traces.as_ref())?;
    runtime.spawn(filter.follow(&args.config)?);
    let served = runtime.block_on(run::serve(config));
    if let Some(traces) = traces {
        traces.finish();
    }
    served.map(|()| ExitCode::SUCCESS)
}

fn run_check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let path = &args.config.config;
    let report = match Config::load(path, env::vars_os()) {
        Ok(config) => tokio::runtime::Runtime::new()?.block_on(check::all(&config)),
        Err(error) => Report { problems: error.findings, ..Report::default() },
    };
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", report.to_json())?,
        false => report.write(path, out)?,
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pool(command: PoolCommand) -> anyhow::Result<ExitCode> {
    match command {
        PoolCommand::Show(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            let ShowArgs { user, client, events, groups, json, .. } = args;
            let show = pools::Show { user, client, events, groups, json };
            block_on(pools::show(&config, &show))
        }
        PoolCommand::Top(args) => {
            let config = Config::load(&args.config.config, env::vars_os())?;
            let interval = (!args.once).then_some(args.interval);
            block_on(pools::top(&config, args.lines, interval))
        }
    }
}
