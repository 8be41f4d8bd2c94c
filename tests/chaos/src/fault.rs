//! What breaks, and how it heals.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use keypool_testing::server::ServerOptions;
use rand::{RngExt as _, rngs::StdRng};
use sqlx::{Connection as _, Executor as _};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Cluster, Layout, clock_file},
    database::Database,
    history::{Micros, now},
};

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Nothing breaks.
    None,
    /// A replica is killed (kill -9) and started again.
    KillReplica,
    /// A replica stands still (SIGSTOP) and goes on (SIGCONT).
    StopReplica,
    /// Postgres is killed (kill -9, or an immediate shutdown), recovers and serves again.
    KillPostgres,
    /// The network between replicas and Postgres is cut, or silent.
    CutDatabase,
    /// The network between replicas and Postgres is slow.
    SlowDatabase,
    /// The network between clients and one replica, or all, is cut, or silent.
    CutClients,
    /// The network between clients and replicas is slow.
    SlowClients,
    /// Somebody takes all connections of Postgres, and the replicas lose theirs.
    OutOfConnections,
    /// The disk of Postgres is full; space is freed, and in half of the cases Postgres restarted.
    DiskFull,
    /// The clocks of replicas jump minutes forth and back.
    ClockJump,
    /// The primary is killed, and its synchronous standby promoted.
    Failover,
    /// The database is lost, and a backup restored that was made under load some time before.
    RestoreBackup,
}

/// Why a scenario was not run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotRun(String);

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What it is about, in a line.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|v| v.get_help().map(ToString::to_string)).unwrap_or_default()
    }
}

/// What strikes a cluster.
#[derive(Debug)]
pub struct Faults {
    scenario: Scenario,
    rng: StdRng,
    /// A folder for whatever it takes, which others may enter.
    folder: PathBuf,
    standby: Option<Database>,
    made: usize,
    disk: Option<Disk>,
}

impl Faults {
    /// Prepares a scenario: the database and what lies around it.
    ///
    /// # Errors
    /// [`NotRun`] when this machine cannot play it; otherwise when something does not start.
    pub async fn prepare(
        scenario: Scenario,
        rng: StdRng,
        folder: &Path,
        replicas: usize,
        options: ServerOptions,
    ) -> anyhow::Result<(Self, Cluster)> {
        let mut layout = Layout { options, ..Layout::default() };
        let mut settings = vec![("max_connections", "100")];
        let mut data = folder.join("0");
        let mut disk = None;
        match scenario {
            Scenario::CutDatabase | Scenario::SlowDatabase | Scenario::Failover => {
                layout.proxy_database = true;
            }
            Scenario::CutClients | Scenario::SlowClients => layout.proxy_clients = true,
            Scenario::OutOfConnections => settings = vec![("max_connections", "60")],
            Scenario::DiskFull => {
                let mounted = Disk::mount(&folder.join("disk"))?;
                data = mounted.folder.join("0");
                disk = Some(mounted);
                settings.extend([("min_wal_size", "32MB"), ("max_wal_size", "64MB")]);
            }
            Scenario::ClockJump => {
                for replica in 0..replicas {
                    fs::write(clock_file(folder, replica), "+0")?;
                }
                layout.clocks = Some((faketime()?, folder.to_owned()));
            }
            Scenario::None
            | Scenario::KillReplica
            | Scenario::StopReplica
            | Scenario::KillPostgres
            | Scenario::RestoreBackup => {}
        }
        let database = Database::create(&data, &settings).await?;
        let cluster = Cluster::start(database, replicas, layout).await?;
        let folder = folder.to_owned();
        let mut faults = Self { scenario, rng, folder, standby: None, made: 0, disk };
        faults.follow(&cluster).await?;
        Ok((faults, cluster))
    }

    /// How long it is quiet until the next one strikes.
    pub fn calm(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(700..3000))
    }

    /// Breaks something and mends it. Answers when it broke and when it was mended.
    ///
    /// # Errors
    /// When it cannot be broken, or not be mended.
    pub async fn strike(&mut self, cluster: &mut Cluster) -> anyhow::Result<(Micros, Micros)> {
        let begun = now();
        let length = Duration::from_millis(self.rng.random_range(300..3000));
        let one = self.rng.random_range(0..cluster.replicas.len());
        let coin = self.rng.random_bool(0.5);
        match self.scenario {
            Scenario::None => sleep(length).await,
            Scenario::KillReplica => {
                let server = cluster.replicas[one].server.take().context("a replica that runs")?;
                server.kill().await;
                sleep(length / 2).await;
                cluster.start_replica(one).await?;
            }
            Scenario::StopReplica => {
                let server = cluster.replicas[one].server.as_ref().context("a replica")?;
                server.signal("STOP");
                sleep(length * 2).await;
                server.signal("CONT");
            }
            Scenario::KillPostgres => {
                cluster.database.kill(if coin { "KILL" } else { "QUIT" }).await?;
                sleep(length / 3).await;
                cluster.database.start().await?;
            }
            Scenario::CutDatabase => {
                let proxy = cluster.proxy.as_ref().context("a proxy")?;
                if coin {
                    proxy.cut();
                } else {
                    proxy.silence();
                }
                sleep(length).await;
                if self.rng.random_bool(0.5) {
                    proxy.cut(); // nothing that was sent meanwhile arrives
                }
                proxy.open();
            }
            Scenario::SlowDatabase => {
                let proxy = cluster.proxy.as_ref().context("a proxy")?;
                proxy.slow_down(Duration::from_millis(self.rng.random_range(5..120)));
                sleep(length).await;
                proxy.open();
            }
            Scenario::CutClients => {
                let all = self.rng.random_ratio(1, 4);
                let replicas = cluster.replicas.iter().enumerate();
                let hit = replicas.filter(|(number, _)| all || *number == one);
                let proxies: Vec<_> =
                    hit.filter_map(|(_, replica)| replica.proxy.as_ref()).collect();
                for proxy in &proxies {
                    if coin {
                        proxy.cut();
                    } else {
                        proxy.silence();
                    }
                }
                sleep(length).await;
                for proxy in &proxies {
                    proxy.open();
                }
            }
            Scenario::SlowClients => {
                for proxy in cluster.replicas.iter().filter_map(|replica| replica.proxy.as_ref()) {
                    proxy.slow_down(Duration::from_millis(self.rng.random_range(5..150)));
                }
                sleep(length).await;
                for proxy in cluster.replicas.iter().filter_map(|replica| replica.proxy.as_ref()) {
                    proxy.open();
                }
            }
            Scenario::OutOfConnections => hog(&cluster.database, length).await?,
            Scenario::DiskFull => {
                let disk = self.disk.as_ref().context("a disk")?;
                disk.fill()?;
                let until = Instant::now() + length;
                if coin {
                    // The log needs another file, for which there is no space.
                    for _ in 0..4 {
                        let _ = cluster.database.run("SELECT pg_switch_wal()").await;
                    }
                }
                sleep(until.saturating_duration_since(Instant::now())).await;
                disk.free()?;
                // Half of the time nobody restarts it: what could not be written is written next
                // time, and one that had to crash recovers by itself, or else ends.
                let heals = self.rng.random_bool(0.5) && cluster.database.is_reachable().await;
                if !heals {
                    if cluster.database.is_running() {
                        cluster.database.kill("QUIT").await?;
                    }
                    cluster.database.start().await?;
                }
            }
            Scenario::ClockJump => {
                for replica in 0..cluster.replicas.len() {
                    let minutes: i32 = self.rng.random_range(-15..=15);
                    fs::write(clock_file(&self.folder, replica), format!("{:+}", minutes * 60))?;
                }
                sleep(length).await;
            }
            Scenario::Failover => {
                let standby = self.standby.take().context("a standby")?;
                cluster.database.kill("KILL").await?;
                sleep(length / 3).await;
                standby.promote().await?;
                let proxy = cluster.proxy.as_ref().context("a proxy")?;
                proxy.lead_to(standby.target()?);
                cluster.database = standby;
            }
            Scenario::RestoreBackup => {
                let folder = self.folder.join("backup");
                cluster.database.copy_to(&folder, false).await?;
                sleep(length * 2).await;
                for replica in &mut cluster.replicas {
                    replica.server.take().context("a replica that runs")?.kill().await;
                }
                cluster.database.kill("KILL").await?;
                cluster.database = cluster.database.restore(&folder).await?;
                cluster.after_restore().await?;
                for number in 0..cluster.replicas.len() {
                    cluster.start_replica(number).await?;
                }
            }
        }
        Ok((begun, now()))
    }

    /// Whether it may strike again: a history is compared with one backup only.
    pub fn strikes_again(&self) -> bool {
        !matches!(self.scenario, Scenario::None | Scenario::RestoreBackup)
    }

    /// Gets ready for the next one.
    ///
    /// # Errors
    /// When a new standby cannot be made.
    pub async fn follow(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.scenario == Scenario::Failover && self.standby.is_none() {
            self.made += 1;
            let folder = self.folder.join(self.made.to_string());
            self.standby = Some(cluster.database.standby(&folder).await?);
            if let Some(gone) = self.made.checked_sub(2) {
                fs::remove_dir_all(self.folder.join(gone.to_string()))?;
            }
        }
        Ok(())
    }
}

/// Takes every connection that Postgres has, and those of the replicas too.
async fn hog(database: &Database, length: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + length;
    let mut taken = vec![database.connect().await?];
    while Instant::now() < until {
        while let Ok(connection) = database.connect().await {
            taken.push(connection);
        }
        let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE application_name = 'keypool'";
        taken[0].execute(statement).await?;
        sleep(Duration::from_millis(20)).await;
    }
    for connection in taken {
        connection.close().await?;
    }
    Ok(())
}

/// A disk of little space, in memory.
#[derive(Debug)]
struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn mount(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=400m,mode=711", "keypool-chaos"]).arg(folder);
        let output = mount.output().context("running mount")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(NotRun(format!("a tmpfs cannot be mounted here ({said})")).into());
        }
        Ok(Self { folder: folder.to_owned() })
    }

    fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.folder.join("filler"))?;
        let chunk = vec![0; 64 * 1024];
        while file.write_all(&chunk).is_ok() {}
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.folder.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.folder).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.folder.display());
        }
    }
}

fn faketime() -> anyhow::Result<PathBuf> {
    let places = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    let places = places.map(|place| place.join("faketime/libfaketime.so.1"));
    let found = places.into_iter().find(|library| library.is_file());
    Ok(found.ok_or_else(|| NotRun("libfaketime is not installed (Debian: faketime)".into()))?)
}

/// Whether [`Faults::prepare`] failed because this machine cannot play the scenario.
pub fn not_run(error: &anyhow::Error) -> Option<&NotRun> {
    error.downcast_ref()
}
