//! Every request message, through the real gRPC and into a real database.

use std::fmt::Debug;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use keypool_client::{Code, Rejection, v1};
use keypool_service::{domain::policy::PoolPolicy, grpc::auth::Scope};
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Request, Status,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::{
    any_message::AnyMessage,
    assert_bounded,
    messages::{group, id, many, reserve, seldom, some_bytes, some_of, timestamp, upload},
    mutate::mutate,
};
use crate::{
    forge::Forge,
    watching::{Replica, Replicas, client_key},
};

/// What an answer may cost that is about nothing in the request: the largest page of events.
const PEAK_CONSTANT: u64 = 4 * 1024 * 1024;

/// What a request may cost for each of its bytes: it is held as it was sent and as it was decoded,
/// here by the sender as well, and a number of one byte takes four, or twelve while its list grows.
const PEAK_PER_BYTE: u64 = 24;

/// A longer message is refused before all of it is sent, which a sender may see as a broken stream.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Who calls: every one has a pool.
pub(super) const CALLERS: [&str; 3] = ["alice", "bob", "carol"];

/// The RPCs, with their requests and answers.
const RPCS: [&str; 8] = [
    "UploadKeyPackages",
    "ReserveKeyPackages",
    "SpendKeyPackages",
    "ReleaseReservations",
    "GetPoolStatus",
    "WatchPoolStatus",
    "RevokeKeyPackages",
    "ListPoolEvents",
];

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The method.
    pub rpc: &'static str,
    /// The code.
    pub code: Code,
}

/// A server in this process, all of it on this thread, so that what it holds can be counted: all but
/// the validation of KeyPackages, which [`key_package`](super::key_package()) counts.
#[derive(Debug)]
pub struct Requests {
    runtime: Runtime,
    grpc: Grpc<Channel>,
    tokens: Vec<String>,
    // Kept from answers, for later requests.
    reservations: Vec<String>,
    page_tokens: Vec<String>,
    refs: Vec<Bytes>,
    _replica: Replica,
    _replicas: Replicas,
}

impl Requests {
    /// Starts the server on a database of its own.
    pub fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (replicas, replica, grpc) = runtime.block_on(async {
            let replicas = Replicas::new(PoolPolicy::default()).await;
            let replica = replicas.serve().await;
            let endpoint = Endpoint::from_shared(format!("http://{}", replica.address));
            let channel = endpoint.expect("a URI").connect().await.expect("a connection");
            (replicas, replica, Grpc::new(channel))
        });
        let tokens =
            CALLERS.map(|user| replicas.token_for(&client_key(user, "phone"), &Scope::ALL));
        let mut requests = Self {
            runtime,
            grpc,
            tokens: tokens.to_vec(),
            reservations: Vec::new(),
            page_tokens: Vec::new(),
            refs: Vec::new(),
            _replica: replica,
            _replicas: replicas,
        };
        requests.fill_pools();
        requests
    }

    /// So that there is something to reserve.
    fn fill_pools(&mut self) {
        for (caller, user) in CALLERS.iter().enumerate() {
            let packages = (0..8).map(|_| Forge::new(1, user).build().into());
            let message =
                v1::UploadKeyPackagesRequest { key_packages: packages.collect(), mode: 0 };
            let answer = self.send("UploadKeyPackages", caller, message.encode_to_vec());
            answer.expect("packages that are taken");
        }
    }

    /// Sends a request made of `data`.
    ///
    /// # Panics
    /// The answer is none that the contract knows, or the server, on this thread, held more memory
    /// than the request may cost.
    pub fn run(&mut self, data: &[u8]) -> Answered {
        let mut u = Unstructured::new(data);
        // Where the input ends, the rest is as it was.
        let rpc = RPCS[u.int_in_range(0..=RPCS.len() - 1).unwrap_or(0)];
        let caller = u.int_in_range(0..=CALLERS.len() - 1).unwrap_or(0);
        let message = self.message(rpc, CALLERS[caller], &mut u).unwrap_or_default();
        self.judge(rpc, caller, message)
    }

    /// Sends these bytes as a request.
    ///
    /// # Panics
    /// As [`Requests::run`].
    pub fn judge(&mut self, rpc: &'static str, caller: usize, message: Vec<u8>) -> Answered {
        let len = message.len();
        let mut answer = None;
        let held = allocation_counter::measure(|| answer = Some(self.send(rpc, caller, message)));
        assert_bounded(held.bytes_max, PEAK_PER_BYTE, PEAK_CONSTANT, len);
        match answer.expect("an answer") {
            Ok(answer) => {
                self.remember(rpc, &answer);
                Answered { rpc, code: Code::Ok }
            }
            Err(status) => {
                let code = status.code();
                assert_known(rpc, status);
                Answered { rpc, code }
            }
        }
    }

    /// Whether the pools still work, whatever was sent before.
    pub fn serves(&mut self) -> bool {
        let message = v1::GetPoolStatusRequest {}.encode_to_vec();
        self.send("GetPoolStatus", 0, message).is_ok()
    }

    fn send(
        &mut self,
        rpc: &'static str,
        caller: usize,
        message: Vec<u8>,
    ) -> std::result::Result<Bytes, Status> {
        let Self { runtime, grpc, tokens, .. } = self;
        let mut request = Request::new(Bytes::from(message));
        let token: MetadataValue<_> =
            format!("Bearer {}", tokens[caller]).parse().expect("a header");
        request.metadata_mut().insert("authorization", token);
        let path = format!("/keypool.v1.KeyPackageService/{rpc}").parse().expect("a path");
        runtime.block_on(async {
            grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            if rpc == "WatchPoolStatus" {
                let mut stream =
                    grpc.server_streaming(request, path, AnyMessage).await?.into_inner();
                return Ok(stream.message().await?.unwrap_or_default());
            }
            Ok(grpc.unary(request, path, AnyMessage).await?.into_inner())
        })
    }

    /// The answer is one that the contract has, and parts of it are used again.
    fn remember(&mut self, rpc: &str, answer: &Bytes) {
        match rpc {
            "UploadKeyPackages" => {
                let answer: v1::UploadKeyPackagesResponse = decoded(answer);
                self.refs.extend(answer.results.into_iter().map(|result| result.key_package_ref));
                trim(&mut self.refs);
            }
            "ReserveKeyPackages" => {
                let answer: v1::ReserveKeyPackagesResponse = decoded(answer);
                let held = answer.reservations().map(|it| it.reservation_id.clone());
                self.reservations.extend(held);
                trim(&mut self.reservations);
            }
            "ListPoolEvents" => {
                let answer: v1::ListPoolEventsResponse = decoded(answer);
                self.page_tokens.push(answer.next_page_token);
                trim(&mut self.page_tokens);
            }
            "SpendKeyPackages" => drop::<v1::SpendKeyPackagesResponse>(decoded(answer)),
            "ReleaseReservations" => drop::<v1::ReleaseReservationsResponse>(decoded(answer)),
            "RevokeKeyPackages" => drop::<v1::RevokeKeyPackagesResponse>(decoded(answer)),
            _ => drop::<v1::PoolStatus>(decoded(answer)),
        }
    }

    /// A request that is nearly right.
    fn message(&self, rpc: &str, user: &str, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let mut message = match rpc {
            "UploadKeyPackages" => upload(user, u)?.encode_to_vec(),
            "ReserveKeyPackages" => reserve(u)?.encode_to_vec(),
            "SpendKeyPackages" => v1::SpendKeyPackagesRequest {
                reservation_ids: many(u, |u| some_of(&self.reservations, u))?,
                group_id: group(u)?,
            }
            .encode_to_vec(),
            "ReleaseReservations" => v1::ReleaseReservationsRequest {
                reservation_ids: many(u, |u| some_of(&self.reservations, u))?,
            }
            .encode_to_vec(),
            "RevokeKeyPackages" => v1::RevokeKeyPackagesRequest {
                client_id: id(u)?,
                refs: many(u, |u| match self.refs.is_empty() || u.ratio(1, 16)? {
                    true => some_bytes(u),
                    false => Ok(u.choose(&self.refs)?.clone()),
                })?,
                // Seldom: it takes away what others reserve.
                all: u.ratio(1, 32)?,
                all_except_signature_key: seldom(u, some_bytes)?,
            }
            .encode_to_vec(),
            "ListPoolEvents" => v1::ListPoolEventsRequest {
                user_id: id(u)?,
                client_id: id(u)?,
                key_package_ref: seldom(u, some_bytes)?,
                start_time: seldom(u, timestamp)?,
                end_time: seldom(u, timestamp)?,
                page_size: *u.choose(&[0, 0, 0, 1, 10, 1000, 1001, -1, i32::MAX, i32::MIN])?,
                page_token: match self.page_tokens.is_empty() || u.ratio(3, 4)? {
                    true => String::new(),
                    false => some_of(&self.page_tokens, u)?,
                },
            }
            .encode_to_vec(),
            // No field.
            _ => Vec::new(),
        };
        for _ in 0..*u.choose(&[0_u8, 0, 0, 0, 0, 0, 1, 3])? {
            mutate(&mut message, &[], u)?;
        }
        message.truncate(MAX_BYTES);
        Ok(message)
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

/// What is refused has a reason of the contract, and is not the server's fault.
#[track_caller]
fn assert_known(rpc: &str, status: Status) {
    let refused = Rejection::from(status);
    let fault_of_caller = matches!(
        refused.code,
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::ResourceExhausted
    );
    assert!(fault_of_caller && refused.reason.is_some(), "{rpc}: {refused:?}");
}

fn decoded<M: Message + Default + Debug>(answer: &Bytes) -> M {
    M::decode(answer.clone()).expect("an answer of the contract")
}

fn trim<T>(kept: &mut Vec<T>) {
    kept.drain(..kept.len().saturating_sub(64));
}
