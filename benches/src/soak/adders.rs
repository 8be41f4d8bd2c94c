//! Adders and owners who keep pools as they are: what is spent is uploaded anew.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::HeaderValue;
use keypool_proto::v1::{GetPoolStatusRequest, PoolStatus, WatchPoolStatusRequest};
use keypool_service::domain::clock::{Clock as _, SystemClock};
use keypool_testing::forge::{Forge, hpke_public_key};
use openmls_traits::types::HpkeKemType;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    callers::{authorization, owner_id, release, reserve, spend, upload},
    connection::{Connection, Peer, Refusal, check, frame, was_told_to_go},
    load::Work,
    packages::CIPHER_SUITE,
    site::PACKAGES_EACH,
};

/// After so many Spends an owner looks at its pool.
const LOOK_AFTER: u32 = 8;
/// So does a random one after one in so many turns, or what nobody takes would run out of time.
const LOOKS: u32 = 16;
/// It adds to a pool with no more than this available: of those some are spent before it looks
/// again, and some have too little time left to be issued, and there have to be more than the low
/// watermark all the same.
const REFILL_AT: i64 = 26;
/// One in so many turns is a newcomer's, whom the service has never seen.
const NEWCOMERS: u32 = 16;
/// One in so many of those is left to lapse.
const LAPSES: u32 = 2;
/// One in so many of the others ends with a Release.
const RELEASES: u32 = 4;
/// Reservations live for as long as the service lets them, or lapse after less.
const TTL: Duration = Duration::from_secs(10);
const SHORT_TTL: Duration = Duration::from_secs(5);
/// The share of turns that end with a Spend, and how often a pool is used up while a package of it
/// lives.
const SPENT: f64 = 0.73;
const POOLS_IN_A_LIFETIME: f64 = 3.0;
/// An owner's stream is opened anew after this.
const WATCH: Duration = Duration::from_secs(20);
/// UNAVAILABLE, as a server ends a stream that is to be opened again.
const UNAVAILABLE: &str = "14";

/// What all of them know.
pub(super) struct World {
    owners: Vec<Owner>,
    /// So many of them, the first ones, are added to groups.
    active: AtomicUsize,
    lifetime: Duration,
    newcomers: AtomicU64,
    calls: [AtomicU64; METHODS.len()],
}

const METHODS: [&str; 6] = ["Reserve", "Spend", "Release", "status", "Upload", "watch"];

#[derive(Clone, Copy)]
enum Method {
    Reserve,
    Spend,
    Release,
    Status,
    Upload,
    Watch,
}

struct Owner {
    number: u32,
    token: HeaderValue,
    forge: Mutex<Forge>,
    spent: AtomicU32,
}

impl World {
    /// Owners 1 to `owners`, whose new packages live for `lifetime`.
    pub(super) fn new(owners: u32, lifetime: Duration) -> anyhow::Result<Arc<Self>> {
        let owner = |number| {
            let user_id = owner_id(number);
            let forge = Mutex::new(Forge::new(CIPHER_SUITE, &user_id));
            Ok(Owner { number, token: authorization(&user_id)?, forge, spent: 0.into() })
        };
        let owners = (1..=owners).map(owner).collect::<anyhow::Result<Vec<_>>>()?;
        let (active, calls) = (owners.len().into(), Default::default());
        Ok(Arc::new(Self { owners, active, lifetime, newcomers: 0.into(), calls }))
    }

    /// How many there were of each.
    pub(super) fn calls(&self) -> BTreeMap<&'static str, u64> {
        let calls = self.calls.iter().map(|calls| calls.load(Ordering::Relaxed));
        METHODS.into_iter().zip(calls).collect()
    }

    /// Leaves out owners whose packages would run out of time before so many turns a second take
    /// them; says how many remain.
    pub(super) fn keep_busy(&self, turns_per_s: f64) -> usize {
        let taken = turns_per_s * SPENT * self.lifetime.as_secs_f64();
        let busy = (taken / (POOLS_IN_A_LIFETIME * PACKAGES_EACH as f64)) as usize;
        let active = busy.clamp(1, self.owners.len());
        self.active.store(active, Ordering::Relaxed);
        active
    }

    fn random_owner(&self) -> anyhow::Result<&Owner> {
        let active = self.active.load(Ordering::Relaxed);
        self.owners.get(rand::random_range(0..active)).context("an owner")
    }

    fn count(&self, method: Method) {
        if let Some(calls) = self.calls.get(method as usize) {
            calls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many new packages of an owner. Made byte by byte, as that is cheapest: the load shares the
    /// cores with the server, which checks them like any others.
    fn packages(&self, owner: &Owner, count: usize) -> anyhow::Result<Vec<Bytes>> {
        let now = u64::try_from(SystemClock.now().unix_timestamp())?;
        let mut forge = owner.forge.lock().unwrap_or_else(PoisonError::into_inner);
        let packages = (0..count).map(|_| {
            forge.init_key = hpke_public_key(HpkeKemType::DhKem25519);
            forge.encryption_key = hpke_public_key(HpkeKemType::DhKem25519);
            forge.source =
                keypool_testing::forge::Source::KeyPackage(now - 60, now + self.lifetime.as_secs());
            forge.build().into()
        });
        Ok(packages.collect())
    }
}

/// One connection: an adder, and the owners whose packages it spends.
pub(super) struct Adder {
    world: Arc<World>,
    connection: Connection,
    token: HeaderValue,
}

impl Adder {
    pub(super) async fn several(
        world: &Arc<World>,
        server: &Peer,
        count: usize,
    ) -> anyhow::Result<Vec<Self>> {
        let mut adders = Vec::with_capacity(count);
        for number in 0..count {
            let connection = Connection::open(server).await?;
            let token = authorization(&format!("adder-{number}"))?;
            adders.push(Self { world: world.clone(), connection, token });
        }
        Ok(adders)
    }

    /// What an owner does now and then: it looks at its pool, and adds to it.
    async fn tend(&mut self, owner: &Owner) -> anyhow::Result<()> {
        self.world.count(Method::Status);
        let status: PoolStatus =
            self.connection.call("GetPoolStatus", &owner.token, &GetPoolStatusRequest {}).await?;
        let suite = status.cipher_suites.iter().find(|suite| suite.cipher_suite == 1);
        let available = i64::from(suite.context("no status of the suite")?.available);
        if available <= REFILL_AT {
            let missing = usize::try_from(PACKAGES_EACH - available)?;
            let packages = self.world.packages(owner, missing)?;
            self.world.count(Method::Upload);
            upload(&mut self.connection, &owner.token, packages).await?;
        }
        Ok(())
    }
}

impl Work for Adder {
    async fn operate(&mut self) -> anyhow::Result<u64> {
        let world = self.world.clone();
        let owner = world.random_owner()?;
        let is_newcomer = rand::random_ratio(1, NEWCOMERS);
        let (token, ttl) = if is_newcomer {
            let number = world.newcomers.fetch_add(1, Ordering::Relaxed);
            (authorization(&format!("newcomer-{number}"))?, SHORT_TTL)
        } else {
            (self.token.clone(), TTL)
        };
        world.count(Method::Reserve);
        let held = reserve(&mut self.connection, &token, owner.number, ttl).await?.reservation_id;
        // What a newcomer does not spend lapses.
        let is_spent = !rand::random_ratio(1, if is_newcomer { LAPSES } else { RELEASES });
        if is_spent {
            world.count(Method::Spend);
            spend(&mut self.connection, &token, held).await?;
            if (owner.spent.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(LOOK_AFTER) {
                self.tend(owner).await?;
            }
        } else if !is_newcomer {
            world.count(Method::Release);
            release(&mut self.connection, &token, held).await?;
        }
        if rand::random_ratio(1, LOOKS) {
            self.tend(world.random_owner()?).await?;
        }
        Ok(1)
    }
}

/// Owners who watch their pools.
pub(super) struct Watches {
    running: JoinSet<anyhow::Result<u64>>,
    stop: CancellationToken,
}

/// Opens so many streams, of different owners.
pub(super) async fn watch(
    world: &Arc<World>,
    server: &Peer,
    count: usize,
) -> anyhow::Result<Watches> {
    let (mut running, stop) = (JoinSet::new(), CancellationToken::new());
    for at in 0..count.min(world.owners.len()) {
        let (world, stop) = (world.clone(), stop.clone());
        let mut connection = Connection::open(server).await?;
        let server = server.clone();
        running.spawn(async move {
            let owner = world.owners.get(at).context("an owner")?;
            let mut pushed = 0;
            while !stop.is_cancelled() {
                world.count(Method::Watch);
                let opened = stream(&connection, owner, &mut pushed);
                let ended = tokio::select! {
                    () = stop.cancelled() => break,
                    ended = tokio::time::timeout(WATCH, opened) => ended,
                };
                match ended {
                    // The owner had enough.
                    Err(_) => {}
                    Ok(Err(error)) if !is_unavailable(&error) && !was_told_to_go(&error) => {
                        return Err(error);
                    }
                    Ok(_) => connection = Connection::open(&server).await?,
                }
            }
            Ok(pushed)
        });
    }
    Ok(Watches { running, stop })
}

/// Counts what comes on one stream until it ends.
async fn stream(connection: &Connection, owner: &Owner, pushed: &mut u64) -> anyhow::Result<()> {
    let before = *pushed;
    let uri = connection.uri("/keypool.v1.KeyPackageService/WatchPoolStatus")?;
    let message = frame(&WatchPoolStatusRequest {})?;
    let mut body = connection.open_stream(&uri, &owner.token, message).await?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        *pushed += 1;
    }
    ensure!(*pushed > before, "a stream without a status");
    Ok(check(&body.trailers().await?.context("a stream without trailers")?)?)
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code() == UNAVAILABLE)
}

impl Watches {
    /// How many statuses came, and what was wrong.
    pub(super) async fn end(mut self) -> anyhow::Result<(u64, BTreeMap<String, u64>)> {
        self.stop.cancel();
        let (mut pushes, mut faults) = (0, BTreeMap::new());
        while let Some(ended) = self.running.join_next().await {
            match ended? {
                Ok(pushed) => pushes += pushed,
                Err(error) => *faults.entry(format!("a watch: {error:#}")).or_default() += 1,
            }
        }
        Ok((pushes, faults))
    }
}
