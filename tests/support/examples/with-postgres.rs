//! `with-postgres COMMAND [ARGUMENT...]`: runs a command with a Postgres server for tests, whose
//! URL is in `KEYPOOL_TEST_POSTGRES`, and ends as the command does.

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
};

use anyhow::Context as _;
use keypool_testing::{database::SERVER_VARIABLE, test_server::TestServer};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().context("usage: with-postgres COMMAND [ARGUMENT...]")?;
    // Ctrl-C and a time-out's SIGTERM are for the command to answer; this process then clears up.
    let _interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let server = TestServer::start().await?;
    let mut command = Command::new(&program)
        .args(arguments)
        .env(SERVER_VARIABLE, server.url())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("running {}", program.display()))?;
    let status = tokio::select! {
        status = command.wait() => Some(status?),
        _ = terminate.recv() => None,
    };
    drop(command);
    server.stop().await?;
    Ok(status.map_or(ExitCode::FAILURE, exit_code))
}

/// As a shell reports it: 128 and the signal for a command that was killed.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
