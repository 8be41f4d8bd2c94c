//! The folder with the database: where it is, how it is made, and that nobody else works in it.

use std::{
    fs::{self, File, TryLockError},
    os::unix,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::{
    account::{Account, create_private_dir},
    binaries::Binaries,
    postgres::{POLL_INTERVAL, PostgresOptions, STOP_TIMEOUT, signal},
};

/// Where root keeps the databases of data folders that Postgres's account cannot enter.
const ROOT_CLUSTERS: &str = "/var/lib/keypool";

/// Creates the data folder and takes its lock, which the kernel releases when this process ends.
pub(super) fn lock_data_dir(
    data_dir: &Path,
    account: Option<Account>,
) -> anyhow::Result<(PathBuf, File)> {
    let context = || format!("data folder {}", data_dir.display());
    fs::create_dir_all(data_dir).with_context(context)?;
    let data_dir = data_dir.canonicalize().with_context(context)?;
    if account.is_some() && fs::read_dir(&data_dir)?.next().is_none() {
        // An empty folder is taken for Postgres's own; mktemp makes them closed to others.
        open_for_passage(&data_dir)?;
    }
    let path = data_dir.join("postgres.lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok((data_dir, lock)),
        Err(TryLockError::WouldBlock) => {
            bail!("data folder {} is in use by another keypool", data_dir.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

/// Lets others pass through a folder, though not list it.
fn open_for_passage(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let mode = fs::metadata(dir)?.permissions().mode();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o011))
}

/// Where the database is or will be: `postgres` in the data folder, or what that links to.
pub(super) fn dir(data_dir: &Path, account: Option<Account>) -> anyhow::Result<PathBuf> {
    let cluster = data_dir.join("postgres");
    if let Ok(target) = fs::read_link(&cluster) {
        return Ok(target);
    }
    match account {
        Some(account) if !cluster.exists() && !account.can_enter(data_dir)? => {
            fs::create_dir_all(ROOT_CLUSTERS).context(ROOT_CLUSTERS)?;
            let target = Path::new(ROOT_CLUSTERS).join(uuid::Uuid::new_v4().to_string());
            tracing::warn!(
                "the user that runs Postgres cannot enter {}: the database is in {}",
                data_dir.display(),
                target.display()
            );
            unix::fs::symlink(&target, &cluster)?;
            Ok(target)
        }
        _ => Ok(cluster),
    }
}

/// The major version that made the database; `None` when there is none yet.
pub(super) fn version(cluster: &Path) -> anyhow::Result<Option<u32>> {
    if !cluster.exists() {
        return Ok(None);
    }
    let path = cluster.join("PG_VERSION");
    let version = fs::read_to_string(&path)
        .with_context(|| format!("{} is no database of Postgres's", cluster.display()))?;
    Ok(Some(version.trim().parse().with_context(|| path.display().to_string())?))
}

/// Makes the database next to its place and moves it there, so that it is whole or absent.
pub(super) fn create(
    binaries: &Binaries,
    cluster: &Path,
    account: Option<Account>,
    options: &PostgresOptions,
) -> anyhow::Result<()> {
    tracing::info!("creating a PostgreSQL {} database", binaries.major());
    let unfinished = cluster.with_extension("new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    create_private_dir(&unfinished, account)?;
    let mut initdb = binaries.command("initdb");
    initdb.arg("-D").arg(&unfinished);
    initdb.args(["--username=postgres", "--encoding=UTF8", "--locale=C"]);
    initdb.args(["--auth-local=trust", "--auth-host=reject"]);
    if !options.durable() {
        initdb.arg("--no-sync");
    }
    let output = initdb.stdin(Stdio::null()).output().context("running initdb")?;
    if !output.status.success() {
        bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::rename(&unfinished, cluster)?;
    Ok(())
}

/// Waits for what a killed keypool left running on the database. The lock is held, so no living
/// keypool needs it.
pub(super) fn end_predecessors(cluster: &Path) -> anyhow::Result<()> {
    if !Path::new("/proc/self").exists() {
        return Ok(()); // Postgres itself then refuses to start beside another server.
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    let pid_file = cluster.join("postmaster.pid");
    let mut signalled = false;
    loop {
        let running = servers_in(cluster)?;
        let Some(first) = running.first() else { break };
        if Instant::now() > deadline {
            bail!("process {first}, a Postgres of an earlier run, does not end");
        }
        let postmaster = fs::read_to_string(&pid_file).ok();
        let postmaster = postmaster.and_then(|text| text.lines().next()?.trim().parse().ok());
        if let Some(pid) = postmaster.filter(|pid| !signalled && running.contains(pid)) {
            signal(pid, "INT")?;
            signalled = true;
        }
        thread::sleep(POLL_INTERVAL);
    }
    // Its process is gone, but its number may be someone else's by now, which Postgres would
    // take for a running server.
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The processes of a server on this database, those that outlive a killed one included: all of
/// them work in its folder.
fn servers_in(cluster: &Path) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = entry.path();
        if fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster)
            && fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "postgres")
        {
            found.push(pid);
        }
    }
    Ok(found)
}
