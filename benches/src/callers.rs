//! Who calls: adders with tokens made before they are needed, and which owners they add.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::HeaderValue;
use keypool_proto::v1::{
    ReleaseReservationsRequest, ReleaseReservationsResponse, Reservation,
    ReserveKeyPackagesRequest, ReserveKeyPackagesResponse, SpendKeyPackagesRequest,
    SpendKeyPackagesResponse, Target, UploadKeyPackagesRequest, UploadKeyPackagesResponse,
    reserve_result, upload_result,
};
use keypool_service::token::TokenRequest;
use keypool_testing::tokens;
use rand::seq::SliceRandom as _;
use uuid::Uuid;

use crate::{
    connection::{Connection, is_refused},
    load::Work,
    packages::{CIPHER_SUITE, Publisher},
};

/// Longer than a run between two resets: nothing lapses while it is measured.
pub(crate) const TTL: Duration = Duration::from_secs(600);
/// When an owner who was refused for too much load comes again.
const AGAIN: Duration = Duration::from_millis(20);
pub(crate) const GROUP_ID: &[u8] = b"0123456789abcdef0123456789abcdef";
/// What the ids of owners start with; a number of six digits follows.
pub(crate) const OWNER_PREFIX: &str = "owner-";

/// A token as the `authorization` header carries it, for longer than any run.
pub(crate) fn authorization(user_id: &str) -> anyhow::Result<HeaderValue> {
    let ttl = Duration::from_secs(24 * 3600);
    let request = TokenRequest { ttl, ..tokens::token_request(user_id, "phone") };
    Ok(format!("Bearer {}", tokens::issue(&request)).parse()?)
}

/// Adders who have not drawn from any pool yet, and the owners in the order in which they are
/// added. Every adder walks through all owners from a place of its own, so that all owners are
/// drawn from alike, and none twice by one adder.
pub(crate) struct Callers {
    tokens: Vec<HeaderValue>,
    next: AtomicUsize,
    /// Numbers of owners, at random.
    owners: Vec<u32>,
    /// After so many calls a connection goes on as the next adder.
    calls_each: usize,
}

impl Callers {
    /// So many adders, whose ids start with `prefix`.
    pub(crate) fn new(
        prefix: &str,
        count: usize,
        mut owners: Vec<u32>,
        calls_each: usize,
    ) -> anyhow::Result<Arc<Self>> {
        owners.shuffle(&mut rand::rng());
        let token = |n| authorization(&format!("{prefix}-{n}"));
        let tokens = (0..count).map(token).collect::<anyhow::Result<_>>()?;
        Ok(Arc::new(Self { tokens, next: AtomicUsize::new(0), owners, calls_each }))
    }

    /// The next adder, and where it starts: places as far from each other as can be.
    fn next(&self) -> anyhow::Result<(HeaderValue, usize)> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let token = self.tokens.get(n).context("too few callers were made")?.clone();
        let golden = (n as f64 * 0.618_033_988_749_895).fract();
        Ok((token, (golden * self.owners.len() as f64) as usize))
    }
}

/// What an adder does with what it reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Spend,
    Release,
}

/// One connection of adders.
pub(crate) struct Adder {
    connection: Connection,
    callers: Arc<Callers>,
    caller: Option<HeaderValue>,
    place: usize,
    calls: usize,
    then: Then,
    /// The refs that were handed out, to see that none was twice.
    refs: Vec<Bytes>,
}

impl Adder {
    pub(crate) fn new(connection: Connection, callers: Arc<Callers>, then: Then) -> Self {
        Self { connection, callers, caller: None, place: 0, calls: 0, then, refs: Vec::new() }
    }

    fn turn(&mut self) -> anyhow::Result<(HeaderValue, u32)> {
        if self.calls.is_multiple_of(self.callers.calls_each) {
            let (token, place) = self.callers.next()?;
            (self.caller, self.place) = (Some(token), place);
        }
        self.calls += 1;
        self.place += 1;
        let owners = &self.callers.owners;
        let owner = owners.get(self.place % owners.len()).context("an owner")?;
        Ok((self.caller.clone().context("a caller")?, *owner))
    }
}

impl Work for Adder {
    async fn operate(&mut self) -> anyhow::Result<u64> {
        let (token, owner) = self.turn()?;
        let connection = &mut self.connection;
        let reservation = reserve(connection, &token, owner, TTL).await?;
        match self.then {
            Then::Keep => self.refs.push(reservation.key_package_ref),
            Then::Spend => {
                spend(connection, &token, reservation.reservation_id).await?;
                self.refs.push(reservation.key_package_ref);
            }
            Then::Release => release(connection, &token, reservation.reservation_id).await?,
        }
        Ok(1)
    }
}

/// The user id of an owner.
pub(crate) fn owner_id(number: u32) -> String {
    format!("{OWNER_PREFIX}{number:06}")
}

/// Reserves a one-time package of an owner.
pub(crate) async fn reserve(
    connection: &mut Connection,
    token: &HeaderValue,
    owner: u32,
    ttl: Duration,
) -> anyhow::Result<Reservation> {
    let user_id = owner_id(owner);
    let request = ReserveKeyPackagesRequest {
        request_id: Uuid::new_v4().to_string(),
        group_id: GROUP_ID.into(),
        cipher_suite: CIPHER_SUITE.into(),
        targets: vec![Target { user_id: user_id.clone(), client_ids: vec!["phone".into()] }],
        ttl: Some(ttl.try_into()?),
        ..ReserveKeyPackagesRequest::default()
    };
    let answer: ReserveKeyPackagesResponse =
        connection.call("ReserveKeyPackages", token, &request).await?;
    let Ok([result]) = <[_; 1]>::try_from(answer.results) else {
        anyhow::bail!("not one result for one client");
    };
    ensure!(result.user_id == user_id, "another user's package");
    let Some(reserve_result::Outcome::Reservation(reservation)) = result.outcome else {
        anyhow::bail!("no reservation: {:?}", result.outcome);
    };
    ensure!(!reservation.last_resort, "a last resort package while stock was left");
    ensure!(reservation.key_package.len() > 200, "no KeyPackage");
    Ok(reservation)
}

/// Spends what was reserved.
pub(crate) async fn spend(
    connection: &mut Connection,
    token: &HeaderValue,
    reservation_id: String,
) -> anyhow::Result<()> {
    let request = SpendKeyPackagesRequest {
        reservation_ids: vec![reservation_id],
        group_id: GROUP_ID.into(),
    };
    let answer: SpendKeyPackagesResponse =
        connection.call("SpendKeyPackages", token, &request).await?;
    ensure!(answer.results.len() == 1, "nothing was spent");
    Ok(())
}

/// Releases what was reserved.
pub(crate) async fn release(
    connection: &mut Connection,
    token: &HeaderValue,
    reservation_id: String,
) -> anyhow::Result<()> {
    let request = ReleaseReservationsRequest { reservation_ids: vec![reservation_id] };
    let answer: ReleaseReservationsResponse =
        connection.call("ReleaseReservations", token, &request).await?;
    ensure!(answer.results.len() == 1, "nothing was released");
    Ok(())
}

/// Uploads packages that are new to the service.
pub(crate) async fn upload(
    connection: &mut Connection,
    token: &HeaderValue,
    key_packages: Vec<Bytes>,
) -> anyhow::Result<()> {
    let count = key_packages.len();
    let request = UploadKeyPackagesRequest { key_packages, ..UploadKeyPackagesRequest::default() };
    let answer: UploadKeyPackagesResponse =
        connection.call("UploadKeyPackages", token, &request).await?;
    ensure!(answer.results.len() == count, "too few results");
    for result in &answer.results {
        match &result.outcome {
            Some(upload_result::Outcome::Accepted(accepted)) if !accepted.already_present => {}
            other => anyhow::bail!("not stored: {other:?}"),
        }
    }
    Ok(())
}

/// How many packages these adders were handed that one of them had been handed before.
pub(crate) fn handed_out_twice(adders: &[Adder]) -> usize {
    let refs = || adders.iter().flat_map(|adder| &adder.refs);
    refs().count() - refs().collect::<HashSet<_>>().len()
}

/// Owners who upload what they made before, each once.
pub(crate) struct Uploads {
    pub(crate) publishers: Vec<(HeaderValue, Publisher)>,
    pub(crate) next: AtomicUsize,
}

/// One connection of owners.
pub(crate) struct Uploader {
    pub(crate) connection: Connection,
    pub(crate) uploads: Arc<Uploads>,
}

impl Work for Uploader {
    async fn operate(&mut self) -> anyhow::Result<u64> {
        let n = self.uploads.next.fetch_add(1, Ordering::Relaxed);
        let (token, publisher) = self.uploads.publishers.get(n).context("nothing to upload")?;
        // Who is refused comes again, as its packages have to be there in the end.
        while let Err(error) = upload(&mut self.connection, token, publisher.packages.clone()).await
        {
            if !is_refused(&error) {
                return Err(error);
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(u64::try_from(publisher.packages.len())?)
    }
}
