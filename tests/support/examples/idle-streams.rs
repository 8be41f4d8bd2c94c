//! `idle-streams [--streams N] [--per-connection N] [--json FILE]`: what an idle WatchPoolStatus
//! stream costs the server in memory. Starts `keypool dev`, whose program lies beside this one's
//! folder, opens a stream for each of N clients, and compares the server's resident memory before
//! and after.

#![allow(clippy::print_stdout)] // what it is for

use std::{
    env,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keypool_proto::v1::{
    PoolStatus, WatchPoolStatusRequest, key_package_service_client::KeyPackageServiceClient,
};
use keypool_service::{
    domain::{
        clock::{Clock as _, SystemClock},
        ids::{ClientId, ClientKey, UserId},
    },
    grpc::auth::Scope,
    token::{SigningKey, TokenRequest},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tonic::{
    Request, Streaming,
    transport::{Channel, Endpoint},
};

/// How many streams are being opened at once.
const AT_ONCE: usize = 64;
/// Streams that are opened and closed before the first measurement, so that what the server
/// makes once is not counted.
const WARM_UP: usize = 20;

struct Arguments {
    streams: usize,
    per_connection: usize,
    json: Option<PathBuf>,
}

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let mut read = Self { streams: 10_000, per_connection: 100, json: None };
        let mut given = env::args().skip(1);
        while let Some(name) = given.next() {
            let value = given.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--streams" => read.streams = value.parse().context(name)?,
                "--per-connection" => read.per_connection = value.parse().context(name)?,
                "--json" => read.json = Some(value.into()),
                _ => bail!("usage: idle-streams [--streams N] [--per-connection N] [--json FILE]"),
            }
        }
        ensure!(read.streams > 0, "--streams must be at least 1");
        // The server lets one connection have 256 streams.
        ensure!((1..=256).contains(&read.per_connection), "--per-connection must be 1 to 256");
        Ok(read)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let dir = tempfile::tempdir()?;
    // Postgres may run as another user than this one.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    let mut server = Server::start(&dir.path().join("data")).await?;

    drop(server.open(WARM_UP, arguments.per_connection).await?);
    let before = server.resident_bytes()?;
    let streams = server.open(arguments.streams, arguments.per_connection).await?;
    let after = server.resident_bytes()?;
    drop(streams);
    server.stop().await?;

    let connections = arguments.streams.div_ceil(arguments.per_connection);
    let each = after.saturating_sub(before) / u64::try_from(arguments.streams)?;
    let mut table = String::new();
    for (name, figure) in [
        ("streams", arguments.streams.to_string()),
        ("connections", connections.to_string()),
        ("server's memory before", format!("{} KiB", before / 1024)),
        ("server's memory with them", format!("{} KiB", after / 1024)),
        ("for each stream", format!("{each} bytes")),
    ] {
        writeln!(table, "{name:<26} {figure:>12}")?;
    }
    print!("{table}");
    if let Some(path) = arguments.json {
        let row = format!(
            "{{\"streams\": {}, \"connections\": {connections}, \"resident_bytes_before\": {before}, \
             \"resident_bytes_after\": {after}, \"bytes_per_stream\": {each}}}\n",
            arguments.streams
        );
        fs::write(&path, row).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// `keypool dev`, a process of its own.
struct Server {
    process: Child,
    /// Kept open: a server that cannot finish its greeting ends.
    _greeting: Lines<BufReader<ChildStdout>>,
    uri: String,
    key: SigningKey,
}

impl Server {
    async fn start(data: &Path) -> anyhow::Result<Self> {
        let this = env::current_exe()?;
        let program = this.parent().and_then(Path::parent).context("a build folder")?;
        let program = program.join("keypool");
        let mut process = Command::new(&program)
            .args(["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} (is it built?)", program.display()))?;
        let mut greeting = BufReader::new(process.stdout.take().context("its output")?).lines();
        let address = loop {
            let line = greeting.next_line().await?.context("the server did not start")?;
            if let Some(rest) = line.strip_prefix("keypool serves on ") {
                break rest.split(';').next().unwrap_or_default().to_owned();
            }
        };
        let key = SigningKey::load(&data.join("dev-key.pem"))?;
        Ok(Self { process, _greeting: greeting, uri: format!("http://{address}"), key })
    }

    /// Opens a stream for each of so many clients, and reads the first state of each.
    async fn open(
        &self,
        streams: usize,
        per_connection: usize,
    ) -> anyhow::Result<Vec<Streaming<PoolStatus>>> {
        let connect = (0..streams.div_ceil(per_connection)).map(|_| self.connect());
        let channels: Vec<Channel> = stream::iter(connect).buffered(AT_ONCE).try_collect().await?;
        let open = (0..streams).map(|n| {
            let channel = channels.get(n / per_connection).cloned();
            async move { self.watch(channel.context("a connection")?, n).await }
        });
        stream::iter(open).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn connect(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(self.uri.clone())?.connect().await?)
    }

    async fn watch(&self, channel: Channel, n: usize) -> anyhow::Result<Streaming<PoolStatus>> {
        let mut request = Request::new(WatchPoolStatusRequest {});
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", self.token(n)?).parse()?);
        let answer = KeyPackageServiceClient::new(channel).watch_pool_status(request).await?;
        let mut statuses = answer.into_inner();
        statuses.message().await?.context("a stream without a state")?;
        Ok(statuses)
    }

    fn token(&self, n: usize) -> anyhow::Result<String> {
        let request = TokenRequest {
            key: ClientKey {
                user: UserId::parse(format!("user-{n}")).context("a user id")?,
                client: ClientId::parse("phone").context("a client id")?,
            },
            scopes: vec![Scope::Publish],
            ttl: Duration::from_secs(3600),
            audience: "keypool".to_owned(),
            issuer: None,
            key_id: None,
        };
        self.key.mint(&request, SystemClock.now())
    }

    /// Its resident memory (`VmRSS` of proc(5)); that of Postgres is not in it.
    fn resident_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.process.id().context("the server has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("the server has ended")?;
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        let status = self.process.wait().await?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}
