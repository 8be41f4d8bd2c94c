//! The real binary, run as a child process.

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use keypool_client::{Client, v1::key_package_service_client::KeyPackageServiceClient};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    built::binary,
    database::TestDatabase,
    proxy::Target,
    tokens::{issuer_public_key, token},
};

/// The name of the service, for its health.
pub const SERVICE: &str = "keypool.v1.KeyPackageService";

/// Between two looks at something that changes by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The binary with these arguments, and no variable that it would take for configuration.
pub fn keypool(arguments: &[&str]) -> Command {
    program(&binary(), arguments)
}

fn program(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("KEYPOOL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a server's configuration says beyond where its database is: TOML by key, as in
/// `server.drain_timeout`.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions(BTreeMap<&'static str, String>);

impl ServerOptions {
    /// Sets a key to a number, a truth value or a list.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl Display) -> Self {
        self.0.insert(key, value.to_string());
        self
    }

    /// Leaves out a key that is set otherwise.
    #[must_use]
    pub fn without(self, key: &'static str) -> Self {
        self.set(key, "")
    }

    /// Sets a key to a text.
    #[must_use]
    pub fn text(self, key: &'static str, value: impl AsRef<str>) -> Self {
        self.set(key, format!("{:?}", value.as_ref()))
    }
}

/// A configuration file, and the key files that it names.
#[derive(Debug)]
pub struct ConfigFile {
    folder: TempDir,
    url: String,
    program: PathBuf,
}

impl ConfigFile {
    /// For a server on the database at `url` that accepts this process's tokens.
    pub fn new(url: &str, options: &ServerOptions) -> Self {
        Self::of(binary(), url, options)
    }

    /// As [`ConfigFile::new`], for another build of keypool.
    pub fn of(program: PathBuf, url: &str, options: &ServerOptions) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::write(folder.path().join("auth.pub.pem"), issuer_public_key()).expect("a key file");
        let file = Self { folder, url: url.into(), program };
        file.rewrite(options);
        file
    }

    /// Says what these options say from now on.
    pub fn rewrite(&self, options: &ServerOptions) {
        let (key, url) = (self.key_file(), &self.url);
        let ServerOptions(mut keys) = ServerOptions::default()
            .text("listen", "127.0.0.1:0")
            .text("database.url", url)
            .set("auth.keys", format!("[{key:?}]"))
            .text("auth.audience", "keypool")
            .set("limits.rate_limits", false) // tests call as often as they like
            .set("server.plaintext", true)
            .text("metrics.listen", "127.0.0.1:0");
        keys.extend(options.0.clone());
        keys.retain(|_, value| !value.is_empty());
        let lines: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let path = self.folder.path().join("keypool.toml");
        fs::write(path, lines).expect("a configuration file");
    }

    /// The file with the public key of this process's tokens.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("auth.pub.pem")
    }

    /// `keypool COMMAND --config FILE`.
    pub fn command(&self, command: &str) -> Command {
        self.command_of(&[command])
    }

    /// As [`ConfigFile::command`], for a command within a command.
    pub fn command_of(&self, commands: &[&str]) -> Command {
        let path = self.folder.path().join("keypool.toml");
        let config = ["--config", path.to_str().expect("a UTF-8 path")];
        program(&self.program, &[commands, &config].concat())
    }

    /// Runs a command to its end.
    pub async fn run(&self, command: &str) -> Output {
        self.command(command).output().await.expect("keypool runs")
    }
}

/// A `keypool serve` process, killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    config: ConfigFile,
    tls: Option<ClientTlsConfig>,
}

impl Server {
    /// Starts a server on `database` and returns once its health is SERVING.
    pub async fn start(database: &TestDatabase, options: &ServerOptions) -> Self {
        Self::on(&database.service_url(), options).await
    }

    /// Starts a server on `database` that serves TLS, which its clients take part in as `tls` says.
    pub async fn start_with_tls(
        database: &TestDatabase,
        options: &ServerOptions,
        tls: ClientTlsConfig,
    ) -> Self {
        Self::with_tls_on(&database.service_url(), options, tls, &[]).await
    }

    /// As [`Server::start_with_tls`], on the database at `url` and with more environment variables.
    pub async fn with_tls_on(
        url: &str,
        options: &ServerOptions,
        tls: ClientTlsConfig,
        environment: &[(&str, &str)],
    ) -> Self {
        let options = options.clone().set("server.plaintext", false);
        Self::launch(ConfigFile::new(url, &options), Some(tls), environment).await
    }

    /// Starts a server on the database at `url`.
    pub async fn on(url: &str, options: &ServerOptions) -> Self {
        Self::launch(ConfigFile::new(url, options), None, &[]).await
    }

    /// Starts a server that is configured so, of whatever build.
    pub async fn configured(config: ConfigFile) -> Self {
        Self::launch(config, None, &[]).await
    }

    /// Starts a server on the database at `url` with more environment variables.
    pub async fn on_with_environment(
        url: &str,
        options: &ServerOptions,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::launch(ConfigFile::new(url, options), None, environment).await
    }

    async fn launch(
        config: ConfigFile,
        tls: Option<ClientTlsConfig>,
        environment: &[(&str, &str)],
    ) -> Self {
        let log = File::create(config.folder.path().join("log")).expect("a log file");
        let child = config
            .command("serve")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("keypool starts");
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), config, tls };
        server.address = server.listening().await;
        server.healthy().await;
        server
    }

    /// The address as the log tells it.
    async fn listening(&mut self) -> SocketAddr {
        loop {
            let log = self.log();
            let whole_lines = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let told = whole_lines.split_once("serving address=");
            if let Some((_, rest)) = told {
                let end = rest.find(|c: char| c.is_whitespace()).unwrap_or(rest.len());
                return rest[..end].parse().expect("an address");
            }
            let ended = self.child.try_wait().expect("the state of a child");
            assert_eq!(ended, None, "keypool ended before it served:\n{}", self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn healthy(&self) {
        let mut statuses = self.health(SERVICE).await;
        while statuses.next().await != ServingStatus::Serving {}
    }

    /// The health of a service from now on: first as it is, then its changes.
    pub async fn health(&self, service: &str) -> HealthWatch {
        HealthWatch::of(self.channel().await, service).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers probes, if `health.listen` is set.
    ///
    /// # Panics
    /// It is not.
    pub fn probes(&self) -> String {
        let log = self.log();
        let told = log.split_once("answering probes address=").expect("a port for probes").1;
        format!("http://{}", told.split_whitespace().next().expect("its address"))
    }

    /// Where it listens, for a proxy.
    pub fn target(&self) -> Target {
        Target::Tcp(self.address)
    }

    /// Where it listens, for a client.
    pub fn uri(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The file with the public key of this process's tokens.
    pub fn key_file(&self) -> PathBuf {
        self.config.key_file()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that was not waited for")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log_bytes()).into_owned()
    }

    /// Everything logged so far.
    pub fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.config.folder.path().join("log")).expect("the log")
    }

    /// Returns once the log holds `text`.
    pub async fn logged(&self, text: &str) {
        until(async || self.log().contains(text)).await;
    }

    /// A new connection.
    pub async fn channel(&self) -> Channel {
        self.channel_with(self.tls.clone()).await.expect("a connection")
    }

    /// A new connection, over TLS as `tls` says.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn channel_with(
        &self,
        tls: Option<ClientTlsConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut endpoint = Endpoint::from_shared(self.uri()).expect("a URI");
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls)?;
        }
        endpoint.connect().await
    }

    /// The generated client, on a new connection.
    pub async fn grpc(&self) -> KeyPackageServiceClient<Channel> {
        KeyPackageServiceClient::new(self.channel().await)
    }

    /// The SDK's client, on a new connection, with all scopes. It repeats no call by itself.
    pub async fn client(&self, user_id: &str, client_id: &str) -> Client {
        let builder = Client::builder(self.uri(), token(user_id, client_id)).retries(0);
        builder.connect().await.expect("a connection")
    }

    /// Changes the server's configuration file.
    pub fn reconfigure(&self, options: &ServerOptions) {
        self.config.rewrite(options);
    }

    /// Sends a signal, as `kill -s NAME` does.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Returns once it accepts no new connection.
    pub async fn refuses_connections(&self) {
        until(async || tokio::net::TcpStream::connect(self.address).await.is_err()).await;
    }

    /// Returns once the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.expect("the state of a child")
    }

    /// Kills it, as `kill -9` does, and returns once it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("a child to kill");
    }
}

impl Drop for Server {
    /// Shows the log beside what failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(8 * 1024);
            let start = log.floor_char_boundary(start);
            eprintln!("--- the end of the log of {}:\n{}", self.address, &log[start..]);
        }
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) {
    let kill = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(kill.is_ok_and(|status| status.success()), "kill -s {name} {pid}");
}

/// The health of a service over time.
#[derive(Debug)]
pub struct HealthWatch(tonic::Streaming<tonic_health::pb::HealthCheckResponse>);

impl HealthWatch {
    /// The health of a service, as a server tells it over this connection.
    pub async fn of(channel: Channel, service: &str) -> Self {
        let request = HealthCheckRequest { service: service.into() };
        let watch = HealthClient::new(channel).watch(request).await;
        Self(watch.expect("the health service").into_inner())
    }

    /// The next status.
    pub async fn next(&mut self) -> ServingStatus {
        let answer = self.0.message().await.expect("a living server");
        answer.expect("a stream without end").status()
    }
}

/// Returns once `happened`; the time limit of the test runner ends it otherwise.
pub async fn until(mut happened: impl AsyncFnMut() -> bool) {
    while !happened().await {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
