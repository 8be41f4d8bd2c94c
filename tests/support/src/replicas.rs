//! Several servers on one database, in this process: the real gRPC, the real authentication.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use keypool_client::Client;
use keypool_service::{
    config::{AuthSection, DatabaseSection, LimitsSection, Secret, ServerSection, SweeperSection},
    domain::{
        clock::{Clock as _, SystemClock},
        ids::{ClientId, ClientKey, UserId},
        key_package::UploadPolicy,
        policy::PoolPolicy,
    },
    grpc::auth::{Authenticator, KeySet, Scope},
    pool::KeyPool,
    run::server_options,
    server,
    store::{Store, StoreOptions},
    token::{SigningKey, TokenRequest},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::database::TestDatabase;

const AUDIENCE: &str = "keypool";

/// Two servers on one database, configured as by default but for the policy.
#[derive(Debug)]
pub struct Replicas {
    addresses: Vec<SocketAddr>,
    key: SigningKey,
    stop: CancellationToken,
    serving: JoinSet<anyhow::Result<()>>,
}

impl Replicas {
    /// Starts both.
    ///
    /// # Errors
    /// When they cannot run.
    pub async fn start(database: &TestDatabase, policy: &PoolPolicy) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = SigningKey::load_or_create(&folder.path().join("key.pem"))?;
        let mut replicas = Self {
            addresses: Vec::new(),
            key,
            stop: CancellationToken::new(),
            serving: JoinSet::new(),
        };
        for _ in 0..2 {
            replicas.add(database, policy).await?;
        }
        Ok(replicas)
    }

    async fn add(&mut self, database: &TestDatabase, policy: &PoolPolicy) -> anyhow::Result<()> {
        let clock = Arc::new(SystemClock);
        let keys = KeySet::new(vec![self.key.verifying_key()?])?;
        let auth = AuthSection::for_audience(AUDIENCE);
        let authenticator = Authenticator::new(keys, &auth, clock.clone());
        let section = DatabaseSection::at(Secret::new(database.service_url()));
        let store = Store::new(
            &StoreOptions {
                url: section.url.expose().to_owned(),
                max_connections: section.max_connections,
                acquire_timeout: section.acquire_timeout,
                statement_timeout: section.statement_timeout,
            },
            clock.clone(),
        )?;
        let pool = KeyPool::open(store, clock, policy.clone(), UploadPolicy::default()).await?;
        let options = server_options(
            &ServerSection::default(),
            &LimitsSection { rate_limits: false, ..LimitsSection::default() },
            &SweeperSection::default(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        self.addresses.push(listener.local_addr()?);
        self.serving.spawn(server::serve(
            listener,
            pool,
            authenticator,
            options,
            self.stop.clone(),
        ));
        Ok(())
    }

    /// A connected client of this user, "phone", with a token of its own, at replica 0 or 1.
    ///
    /// # Errors
    /// When it cannot connect, or there is no such user or replica.
    pub async fn client(&self, replica: usize, user: &str, scope: Scope) -> anyhow::Result<Client> {
        let request = TokenRequest {
            key: ClientKey { user: UserId::parse(user)?, client: ClientId::parse("phone")? },
            scopes: vec![scope],
            ttl: Duration::from_secs(3600),
            audience: AUDIENCE.into(),
            issuer: None,
            key_id: None,
        };
        let token = self.key.mint(&request, SystemClock.now())?;
        let address = self.addresses.get(replica).context("no such replica")?;
        Ok(Client::builder(format!("http://{address}"), token).retries(0).connect().await?)
    }

    /// Stops the servers once their calls are done.
    ///
    /// # Errors
    /// When a server failed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(served) = self.serving.join_next().await {
            served.context("a server failed")??;
        }
        Ok(())
    }
}
