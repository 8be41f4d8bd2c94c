//! Somebody who calls keypool, each call and its answer recorded.

use std::{future::Future, sync::Arc, time::Duration};

use keypool_client::{
    Client, Error, Reserve,
    v1::{
        self, ErrorReason, RejectReason, UnavailableReason,
        key_package_service_client::KeyPackageServiceClient,
    },
};
use keypool_testing::tokens::authorized;
use tonic::{Status, transport::Channel};
use uuid::Uuid;

use crate::{
    history::{Answer, Call, Counts, Got, Micros, Op, Recorder, Ref, Slot, Stored, Via, now},
    packages::{Made, SUITE},
    verify,
};

/// How long a call without the SDK waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The names behind the numbers of a history.
#[derive(Debug, Clone, Default)]
pub struct Cast {
    /// User and client of each pool.
    pub pools: Vec<(String, String)>,
    /// User and client of each caller.
    pub callers: Vec<(String, String)>,
}

/// The way to the service.
#[derive(Debug, Clone)]
pub enum Line {
    /// By the SDK, which knows all replicas.
    Sdk(Client),
    /// By hand, to one replica.
    Raw {
        /// Which.
        replica: u8,
        /// The connection.
        grpc: KeyPackageServiceClient<Channel>,
        /// The caller's token.
        token: String,
    },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Party {
    /// Whose work it is.
    pub worker: u16,
    /// Its number in the cast: of a pool or of a caller.
    pub number: u16,
    /// The way to the service.
    pub line: Line,
    /// The names.
    pub cast: Arc<Cast>,
    /// Where it is written down.
    pub recorder: Arc<Recorder>,
}

/// What an adder asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The request_id.
    pub request: Uuid,
    /// The group, by number.
    pub group: u32,
    /// How long.
    pub ttl: Duration,
    /// All or nothing.
    pub all: bool,
    /// From which pools.
    pub pools: Vec<u16>,
}

/// A reservation that an adder got.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its id, as it was answered.
    pub id: String,
    /// What the id names.
    pub slot: Slot,
    /// The package.
    pub reference: Ref,
}

impl Party {
    /// Uploads these.
    pub async fn upload(&self, packages: &[Made]) -> anyhow::Result<Answer> {
        let offered: Vec<_> = packages.iter().map(|package| package.offered).collect();
        let call = Call::Upload { pool: self.number, packages: offered.clone() };
        let bytes = packages.iter().map(|package| package.bytes.clone().into());
        let message = v1::UploadKeyPackagesRequest {
            key_packages: bytes.collect(),
            mode: v1::UploadMode::Add.into(),
        };
        self.record(call, async {
            let answer = match &self.line {
                Line::Sdk(client) => client.upload(message.key_packages).await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    by_hand(grpc.upload_key_packages(request(token, message))).await?
                }
            };
            if let Err(wrong) = verify::uploads(&offered, &answer.results) {
                return Ok(Answer::Wrong(wrong));
            }
            let stored = answer.results.iter().map(|result| match result.rejected() {
                None => {
                    let already = result.accepted().is_some_and(|a| a.already_present);
                    Stored::Accepted { already }
                }
                Some(rejected) if rejected.reason() == RejectReason::AlreadyUsed => {
                    Stored::AlreadyUsed
                }
                Some(rejected) => Stored::Refused(rejected.reason),
            });
            Ok(Answer::Uploaded(stored.collect()))
        })
        .await
    }

    /// Reserves what is wished for. The reservations stand in the order of their pools.
    pub async fn reserve(&self, wish: &Wish) -> anyhow::Result<(Answer, Vec<Held>)> {
        let call = Call::Reserve {
            caller: self.number,
            request: wish.request,
            group: wish.group,
            ttl: Micros::try_from(wish.ttl.as_micros())?,
            all: wish.all,
            pools: wish.pools.clone(),
        };
        let mut ask = Reserve::new(group(wish.group), SUITE).request_id(wish.request).ttl(wish.ttl);
        let owner = |&pool: &u16| &self.cast.pools[usize::from(pool)];
        let asked: Vec<_> = wish.pools.iter().map(owner).collect();
        for (user, client) in &asked {
            ask = ask.target_clients(user, [client]);
        }
        if wish.all {
            ask = ask.all_or_nothing();
        }
        let mut held = Vec::new();
        let answer = self.record(call, async {
            let answer = match &self.line {
                Line::Sdk(client) => client.reserve(&ask).await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    let message = ask.message().clone();
                    by_hand(grpc.reserve_key_packages(request(token, message))).await?
                }
            };
            if let Err(wrong) = verify::reservations(&asked, &answer.results) {
                return Ok(Answer::Wrong(wrong));
            }
            held = answer.reservations().filter_map(holding).collect();
            Ok(Answer::Reserved(answer.results.iter().map(got).collect()))
        });
        Ok((answer.await?, held))
    }

    /// Spends these.
    pub async fn spend(&self, group_number: u32, held: &[Held]) -> anyhow::Result<Answer> {
        let slots = held.iter().map(|held| held.slot).collect();
        let call = Call::Spend { caller: self.number, group: group_number, slots };
        let ids = || held.iter().map(|held| held.id.clone());
        self.record(call, async {
            let results = match &self.line {
                Line::Sdk(client) => client.spend(group(group_number), ids()).await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    let message = v1::SpendKeyPackagesRequest {
                        reservation_ids: ids().collect(),
                        group_id: group(group_number).into(),
                    };
                    by_hand(grpc.spend_key_packages(request(token, message))).await?.results
                }
            };
            if let Err(wrong) = verify::spends(held, &results) {
                return Ok(Answer::Wrong(wrong));
            }
            Ok(Answer::Spent(results.iter().map(|result| result.already_spent).collect()))
        })
        .await
    }

    /// Releases these.
    pub async fn release(&self, held: &[Held]) -> anyhow::Result<Answer> {
        let slots = held.iter().map(|held| held.slot).collect();
        let call = Call::Release { caller: self.number, slots };
        let ids = || held.iter().map(|held| held.id.clone());
        self.record(call, async {
            let results = match &self.line {
                Line::Sdk(client) => client.release(ids()).await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    let message =
                        v1::ReleaseReservationsRequest { reservation_ids: ids().collect() };
                    by_hand(grpc.release_reservations(request(token, message))).await?.results
                }
            };
            if let Err(wrong) = verify::releases(held, &results) {
                return Ok(Answer::Wrong(wrong));
            }
            Ok(Answer::Released(results.iter().map(|result| result.already_released).collect()))
        })
        .await
    }

    /// Withdraws these.
    pub async fn revoke(&self, refs: Vec<Ref>) -> anyhow::Result<Answer> {
        let message = v1::RevokeKeyPackagesRequest {
            refs: refs.iter().map(|reference| reference.0.to_vec().into()).collect(),
            ..Default::default()
        };
        self.record(Call::Revoke { pool: self.number, refs }, async {
            match &self.line {
                Line::Sdk(client) => client.revoke(message).await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    by_hand(grpc.revoke_key_packages(request(token, message))).await?
                }
            };
            Ok(Answer::Revoked)
        })
        .await
    }

    /// Asks how the pool stands.
    pub async fn status(&self) -> anyhow::Result<Answer> {
        self.record(Call::Status { pool: self.number }, async {
            let status = match &self.line {
                Line::Sdk(client) => client.pool_status().await?,
                Line::Raw { grpc, token, .. } => {
                    let mut grpc = grpc.clone();
                    let message = v1::GetPoolStatusRequest {};
                    by_hand(grpc.get_pool_status(request(token, message))).await?
                }
            };
            let suite = status.cipher_suites.first();
            Ok(Answer::Status(suite.map(counts).unwrap_or_default()))
        })
        .await
    }

    async fn record(
        &self,
        call: Call,
        answer: impl Future<Output = Result<Answer, Error>>,
    ) -> anyhow::Result<Answer> {
        let via = match &self.line {
            Line::Sdk(_) => Via::Sdk,
            Line::Raw { replica, .. } => Via::Replica(*replica),
        };
        let begun = now();
        let answer = answer.await.unwrap_or_else(|error| failure(&error));
        let op = Op { worker: self.worker, via, begun, ended: now(), call, answer };
        let answer = op.answer.clone();
        self.recorder.add(op)?;
        Ok(answer)
    }
}

/// The group id of a number.
fn group(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn request<T>(token: &str, message: T) -> tonic::Request<T> {
    let mut request = authorized(token, message);
    request.set_timeout(PATIENCE);
    request
}

async fn by_hand<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Error::DeadlineExceeded),
    }
}

fn holding(reservation: &v1::Reservation) -> Option<Held> {
    let slot = Slot::of(&reservation.reservation_id)?;
    let reference = Ref::of(&reservation.key_package_ref)?;
    Some(Held { id: reservation.reservation_id.clone(), slot, reference })
}

fn got(result: &v1::ReserveResult) -> Got {
    let Some(reservation) = result.reservation() else {
        return match result.unavailable().map(v1::Unavailable::reason) {
            Some(UnavailableReason::Quota) => Got::Quota,
            Some(UnavailableReason::NoCompatibleKeyPackage) => Got::Incompatible,
            _ => Got::Exhausted,
        };
    };
    Got::Package {
        slot: Slot::of(&reservation.reservation_id).expect("an id of this service"),
        reference: Ref::of(&reservation.key_package_ref).expect("a ref of this suite"),
        expires_at: verify::expires_at(reservation).expect("a reservation that ends"),
        last_resort: reservation.last_resort,
    }
}

fn counts(suite: &v1::CipherSuiteStatus) -> Counts {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    Counts {
        available: suite.available.into(),
        reserved: suite.reserved.into(),
        spent: number(suite.spent),
        expired: number(suite.expired),
    }
}

fn failure(error: &Error) -> Answer {
    match error {
        Error::DeadlineExceeded => Answer::Unknown("DEADLINE"),
        Error::Transport(_) => Answer::Unknown("TRANSPORT"),
        Error::RateLimited(_) => Answer::Unknown("RATE_LIMITED"),
        Error::Overloaded(_) => Answer::Unknown("OVERLOADED"),
        Error::Unavailable(_) => Answer::Unknown("UNAVAILABLE"),
        Error::PoolExhausted(_) => Answer::Refused("POOL_EXHAUSTED"),
        Error::NoCompatibleKeyPackage(_) => Answer::Refused("NO_COMPATIBLE_KEY_PACKAGE"),
        Error::Quota(_) => Answer::Refused("QUOTA"),
        Error::ReservationUnknown(_) => Answer::Refused("RESERVATION_UNKNOWN"),
        Error::ReservationLost(_) => Answer::Refused("RESERVATION_LOST"),
        Error::ReservationNotHeld(_) => Answer::Refused("RESERVATION_NOT_HELD"),
        Error::Rejected(why) if why.reason == Some(ErrorReason::GroupMismatch) => {
            Answer::Refused("GROUP_MISMATCH")
        }
        other => Answer::Internal(format!("{other:?}")),
    }
}
