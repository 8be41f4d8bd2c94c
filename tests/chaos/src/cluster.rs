//! Replicas of keypool on one database, and what lies between them and their clients.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use keypool_client::{Client, v1::key_package_service_client::KeyPackageServiceClient};
use keypool_testing::{
    proxy::{Proxy, Target},
    server::{ConfigFile, Server, ServerOptions},
    tokens::{issue, token_request},
};
use tonic::transport::Endpoint;

use crate::{
    database::Database,
    history::Recorder,
    party::{Cast, Line, Party},
};

/// How long an application waits for a call, retries and all, unless a run says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Replicas reach the database through a proxy.
    pub proxy_database: bool,
    /// Clients reach the replicas through proxies.
    pub proxy_clients: bool,
    /// The library that lies about the time, and a folder with a file for each replica that says by
    /// how much.
    pub clocks: Option<(PathBuf, PathBuf)>,
    /// Settings of the service.
    pub options: ServerOptions,
}

/// One replica. It keeps its port when it starts again.
#[derive(Debug)]
pub struct Replica {
    /// Its process; `None` when it was killed.
    pub server: Option<Server>,
    /// What lies between it and its clients.
    pub proxy: Option<Proxy>,
    port: SocketAddr,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    /// The database.
    pub database: Database,
    /// What lies between it and the replicas.
    pub proxy: Option<Proxy>,
    /// All replicas.
    pub replicas: Vec<Replica>,
    /// How long an application waits for a call, retries and all.
    pub deadline: Duration,
    layout: Layout,
}

impl Cluster {
    /// So many replicas on this database.
    ///
    /// # Errors
    /// When there is no port for them.
    pub async fn start(database: Database, count: usize, layout: Layout) -> anyhow::Result<Self> {
        let proxy =
            if layout.proxy_database { Some(Proxy::to(database.target()?).await) } else { None };
        let mut cluster =
            Self { database, proxy, replicas: Vec::new(), deadline: DEADLINE, layout };
        for number in 0..count {
            let port = free_port()?;
            let proxy = if cluster.layout.proxy_clients {
                Some(Proxy::to(Target::Tcp(port)).await)
            } else {
                None
            };
            cluster.replicas.push(Replica { server: None, proxy, port });
            cluster.start_replica(number).await?;
        }
        Ok(cluster)
    }

    /// Starts a replica, and returns once it serves.
    ///
    /// # Errors
    /// When there is no such replica.
    pub async fn start_replica(&mut self, number: usize) -> anyhow::Result<()> {
        let url = match &self.proxy {
            Some(proxy) => Database::url_through(proxy.address()),
            None => self.database.url()?,
        };
        let replica = self.replicas.get_mut(number).context("no such replica")?;
        let options = self.layout.options.clone().text("listen", replica.port.to_string());
        let mut environment = Vec::new();
        let clock = self.layout.clocks.as_ref().map(|(library, folder)| {
            (library.display().to_string(), clock_file(folder, number).display().to_string())
        });
        if let Some((library, file)) = &clock {
            environment.extend([
                ("LD_PRELOAD", library.as_str()),
                ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("DONT_FAKE_MONOTONIC", "1"),
            ]);
        }
        replica.server = Some(Server::on_with_environment(&url, &options, &environment).await);
        Ok(())
    }

    /// Makes a restored database safe, as `docs/restore.md` says.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn after_restore(&self) -> anyhow::Result<()> {
        let config = ConfigFile::new(&self.database.owner_url()?, &self.layout.options);
        let mut command = config.command("after-restore");
        command.args(["--withdraw-every-key-package", "--lifetime-margin", "1h"]);
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "after-restore: {said}");
        Ok(())
    }

    /// The addresses that clients know.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address =
            |replica: &Replica| replica.proxy.as_ref().map_or(replica.port, Proxy::address);
        self.replicas.iter().map(address).collect()
    }

    /// The SDK for a client, as applications build it: by the addresses of all replicas, with what
    /// the SDK does by itself, and with this deadline.
    ///
    /// # Errors
    /// When an address is none.
    pub fn sdk(&self, user: &str, client: &str) -> anyhow::Result<Client> {
        let mut addresses = self.addresses().into_iter().map(|address| format!("http://{address}"));
        let first = addresses.next().context("no replica")?;
        let mut builder = Client::builder(first, long_token(user, client)).deadline(self.deadline);
        for address in addresses {
            builder = builder.endpoint(address);
        }
        Ok(builder.connect_lazy()?)
    }
}

/// Who can call the service, made before the faults begin.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The names.
    pub cast: Arc<Cast>,
    /// Where calls are written down.
    pub recorder: Arc<Recorder>,
}

impl Gate {
    /// Somebody who calls by the SDK.
    ///
    /// # Errors
    /// As [`Cluster::sdk`].
    pub fn by_sdk(
        &self,
        cluster: &Cluster,
        worker: u16,
        number: u16,
        (user, client): &(String, String),
    ) -> anyhow::Result<Party> {
        Ok(self.party(worker, number, Line::Sdk(cluster.sdk(user, client)?)))
    }

    /// Somebody who calls one replica by hand.
    ///
    /// # Errors
    /// When its address is none.
    pub fn by_hand(
        &self,
        cluster: &Cluster,
        worker: u16,
        number: u16,
        name: &(String, String),
    ) -> anyhow::Result<Party> {
        let replica = usize::from(worker) % cluster.replicas.len();
        self.by_hand_at(cluster, replica, worker, number, name)
    }

    /// Somebody who calls this replica by hand.
    ///
    /// # Errors
    /// When there is no such replica, or its address is none.
    pub fn by_hand_at(
        &self,
        cluster: &Cluster,
        replica: usize,
        worker: u16,
        number: u16,
        (user, client): &(String, String),
    ) -> anyhow::Result<Party> {
        let address = *cluster.addresses().get(replica).context("no such replica")?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let endpoint = endpoint.connect_timeout(Duration::from_secs(2));
        let grpc = KeyPackageServiceClient::new(endpoint.connect_lazy());
        let token = long_token(user, client);
        Ok(self.party(worker, number, Line::Raw { replica: u8::try_from(replica)?, grpc, token }))
    }

    fn party(&self, worker: u16, number: u16, line: Line) -> Party {
        Party { worker, number, line, cast: self.cast.clone(), recorder: self.recorder.clone() }
    }
}

/// The file that says by how much the clock of a replica is wrong.
pub fn clock_file(folder: &Path, replica: usize) -> PathBuf {
    folder.join(format!("clock-{replica}"))
}

/// For longer than any run.
fn long_token(user: &str, client: &str) -> String {
    let mut request = token_request(user, client);
    request.ttl = Duration::from_secs(24 * 3600);
    issue(&request)
}

/// A port that nobody listens on now.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
