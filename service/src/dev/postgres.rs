//! The server itself: made, started, watched and stopped.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

use super::{account::Account, binaries::Binaries, cluster};

/// How long a server may take until it accepts connections; recovery after a crash takes longest.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to write its checkpoint and end.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The only one: nothing listens on TCP, the number is just part of the socket's name.
const PORT: u16 = 5432;
/// The longest path that fits a socket address on Linux (107 bytes) and the BSDs (103 bytes).
const MAX_SOCKET_PATH: usize = 103;

/// How an [`EmbeddedPostgres`] is run.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// Adds a server setting, as `postgres -c name=value` does. The last one of a name wins.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub(super) fn durable(&self) -> bool {
        let last = self.settings.iter().rfind(|(name, _)| name == "fsync");
        last.is_none_or(|(_, value)| !matches!(value.as_str(), "off" | "false" | "no" | "0"))
    }
}

/// A running Postgres server of this process's own, durable like any other.
///
/// It ends when it is stopped or dropped and, where util-linux's `setpriv` is installed, when
/// this process is killed. A Ctrl-C in the terminal does not reach it.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    url: String,
    log: PathBuf,
    pid: u32,
    /// The thread that started the server and waits for it; `None` once it was joined.
    keeper: Option<JoinHandle<std::io::Result<ExitStatus>>>,
    /// Held, not used: the socket's folder where the data folder's path is too long.
    _socket_dir: Option<TempDir>,
    /// Held, not used: as long as it is open, nobody else starts a server on the folder.
    _lock: File,
}

impl EmbeddedPostgres {
    /// Starts a server on `data_dir` and returns once it accepts connections. The folder is
    /// created when it is missing, its database with it, and both are kept for the next start.
    ///
    /// Root hands the server to the user `postgres` or else `nobody`. When that user cannot enter
    /// `data_dir`, the database lies below `/var/lib/keypool` and `data_dir/postgres` links to it.
    ///
    /// # Errors
    /// No Postgres programs are found (the error says what to install), the folder is in use or
    /// unusable, or the server does not start (the error ends with its last log lines).
    pub async fn start(data_dir: &Path, options: PostgresOptions) -> anyhow::Result<Self> {
        let data_dir = data_dir.to_owned();
        let mut server =
            tokio::task::spawn_blocking(move || Self::launch(&data_dir, &options)).await??;
        server.accept_connections().await?;
        Ok(server)
    }

    /// The URL of the superuser's database, for sqlx and for `psql`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops the server as `SIGINT` does: open transactions are rolled back, a checkpoint is
    /// written, and the next start needs no recovery.
    ///
    /// # Errors
    /// The server does not end, or not with success.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let status = tokio::task::spawn_blocking(move || self.shut_down()).await??;
        if !status.success() {
            bail!("Postgres ended with {status}");
        }
        Ok(())
    }

    fn launch(data_dir: &Path, options: &PostgresOptions) -> anyhow::Result<Self> {
        let account = Account::for_postgres()?;
        let (data_dir, lock) = cluster::lock_data_dir(data_dir, account)?;
        let cluster = cluster::dir(&data_dir, account)?;
        let binaries = Binaries::find(account, cluster::version(&cluster)?)?;
        if !cluster.exists() {
            cluster::create(&binaries, &cluster, account, options)?;
        }
        cluster::end_predecessors(&cluster)?;

        let (socket_dir, own_socket_dir) = socket_dir(&cluster, account)?;
        let log = data_dir.join("postgres.log");
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = binaries.command_under(death_signal_wrapper(), "postgres");
        command
            .arg("-D")
            .arg(&cluster)
            .args(["-c", "listen_addresses=", "-c", &format!("port={PORT}")])
            .args(["-c", &format!("unix_socket_directories={}", quoted(&socket_dir)?)])
            // Rows, and with them KeyPackages, stay out of the log: DETAIL lines show them.
            .args(["-c", "log_error_verbosity=terse", "-c", "timezone=UTC"])
            .args(options.settings.iter().flat_map(|(n, v)| ["-c".into(), format!("{n}={v}")]))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // The terminal sends Ctrl-C to a whole group: keypool drains before Postgres ends.
            .process_group(0);
        let (pid, keeper) = spawn_kept(command)?;
        Ok(Self {
            url: socket_url(&socket_dir),
            log,
            pid,
            keeper: Some(keeper),
            _socket_dir: own_socket_dir,
            _lock: lock,
        })
    }

    async fn accept_connections(&mut self) -> anyhow::Result<()> {
        let options: PgConnectOptions = self.url.parse()?;
        let attempts = async {
            loop {
                if let Some(keeper) = self.keeper.take_if(|keeper| keeper.is_finished()) {
                    bail!("Postgres ended with {}", joined(keeper)?);
                }
                match PgConnection::connect_with(&options).await {
                    Ok(connection) => return Ok(connection.close().await?),
                    Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
                }
            }
        };
        let outcome = match tokio::time::timeout(START_TIMEOUT, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("Postgres accepts no connection after {START_TIMEOUT:?}")),
        };
        outcome.with_context(|| {
            format!("Postgres did not start; {} ends:\n{}", self.log.display(), tail(&self.log))
        })
    }

    /// Ends the server, first with `SIGINT`, and harder when that does not help.
    fn shut_down(&mut self) -> anyhow::Result<ExitStatus> {
        let keeper = self.keeper.take().context("Postgres has ended before")?;
        for name in ["INT", "QUIT", "KILL"] {
            let deadline = Instant::now() + STOP_TIMEOUT;
            if !keeper.is_finished() {
                signal(self.pid, name)?;
            }
            while !keeper.is_finished() && Instant::now() < deadline {
                thread::sleep(POLL_INTERVAL);
            }
            if keeper.is_finished() {
                return joined(keeper);
            }
        }
        bail!("Postgres, process {}, cannot be ended", self.pid)
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        if self.keeper.is_some()
            && let Err(error) = self.shut_down()
        {
            tracing::warn!("Postgres could not be stopped: {error:#}");
        }
    }
}

/// The folder for the socket: the database's own, closed to others, unless its path is too long.
fn socket_dir(
    cluster: &Path,
    account: Option<Account>,
) -> anyhow::Result<(PathBuf, Option<TempDir>)> {
    let name = format!(".s.PGSQL.{PORT}");
    if cluster.join(&name).as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok((cluster.to_owned(), None));
    }
    for base in [std::env::temp_dir(), "/tmp".into()] {
        let dir = tempfile::Builder::new().prefix("keypool-").tempdir_in(base)?;
        if dir.path().join(&name).as_os_str().len() <= MAX_SOCKET_PATH {
            account.map_or(Ok(()), |account| account.own(dir.path()))?;
            return Ok((dir.path().to_owned(), Some(dir)));
        }
    }
    bail!("no folder with a path short enough for a socket; set TMPDIR to a short one")
}

/// A path as an element of a list of folders in Postgres's settings.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(format!("\"{}\"", path.replace('"', "\"\"")))
}

fn socket_url(socket_dir: &Path) -> String {
    let mut host = String::new();
    for &byte in socket_dir.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            host.push(char::from(byte));
        } else {
            host.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("postgres://postgres@localhost:{PORT}/postgres?sslmode=disable&host={host}")
}

/// What to put before the server's command so that the kernel ends it with this process: the
/// call itself would need unsafe code. Nothing where util-linux's `setpriv` is missing.
fn death_signal_wrapper() -> &'static [&'static str] {
    const WRAPPER: &[&str] = &["setpriv", "--pdeathsig", "INT", "--"];
    let [program, arguments @ ..] = WRAPPER else { return &[] };
    let mut probe = Command::new(program);
    probe.args(arguments).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) { WRAPPER } else { &[] }
}

/// Spawns the server from a thread that lives as long as it does: the kernel sends the death
/// signal when the spawning thread ends, not the process.
fn spawn_kept(
    mut command: Command,
) -> anyhow::Result<(u32, JoinHandle<std::io::Result<ExitStatus>>)> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let keep = move || {
        let mut child: Child = command.spawn()?;
        // The receiver waits for this and nothing else, so it is still there.
        let _ = sender.send(child.id());
        child.wait()
    };
    let keeper = thread::Builder::new().name("postgres-keeper".into()).spawn(keep)?;
    match receiver.recv() {
        Ok(pid) => Ok((pid, keeper)),
        Err(_) => {
            let status = joined(keeper).context("starting postgres")?;
            bail!("postgres ended with {status} before it began")
        }
    }
}

fn joined(keeper: JoinHandle<std::io::Result<ExitStatus>>) -> anyhow::Result<ExitStatus> {
    Ok(keeper.join().map_err(|_| anyhow!("the thread that keeps Postgres panicked"))??)
}

/// Sends a signal. The call itself would need unsafe code; the shell's own kill is everywhere.
pub(super) fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill -s "$0" "$1""#, name, &pid.to_string()]).stderr(Stdio::null());
    // A failure means that the process has just ended; whoever waits for it will see.
    kill.status().context("running sh")?;
    Ok(())
}

/// The last lines of the log, at most 8 KiB.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(8 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(unreadable: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
