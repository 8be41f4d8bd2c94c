//! The service trait: each RPC parses, calls a use case and answers.

use std::{error::Error as StdError, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use keypool_proto::{
    MAX_REQUEST_FIELDS,
    v1::{self, key_package_service_server::KeyPackageService},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::{
    auth::{Caller, Scope},
    convert, deadline,
    limit::{Limits, Load, LoadLimits, Refused, count_refused},
    status,
};
use crate::{
    domain::error::{Error, FieldViolation},
    metrics::{Shed, code_name, metrics},
    pool::{KeyPool, WatchLimits},
    telemetry::traces,
};

/// What bounds the calls.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// What bounds their number.
    pub load: LoadLimits,
    /// How long a call may take to arrive, and as long again to be answered.
    pub timeout: Duration,
    /// The size of the message of a request.
    pub max_request_bytes: usize,
    /// What bounds the streams.
    pub watch: WatchLimits,
}

/// `keypool.v1.KeyPackageService` on a [`KeyPool`].
#[derive(Debug, Clone)]
pub struct GrpcService {
    pool: KeyPool,
    load: Arc<Limits>,
    limits: CallLimits,
    stop: CancellationToken,
}

impl GrpcService {
    /// Serves `pool` within `limits`, for whose `load` there is `load`; `stop` ends its streams.
    pub fn new(
        pool: KeyPool,
        limits: CallLimits,
        load: Arc<Limits>,
        stop: CancellationToken,
    ) -> Self {
        Self { pool, load, limits, stop }
    }

    /// Runs one call of a caller with one of `scopes`, within the limits: `prepare` reads the
    /// message and pays for it, `work` does what it asks once there is a place for it.
    async fn call<Q, P, A>(
        &self,
        request: Request<Q>,
        scopes: &[Scope],
        prepare: impl FnOnce(&Caller, Q) -> Result<(Load, P), Error>,
        work: impl AsyncFnOnce(&KeyPool, &Caller, P) -> Result<A, Error>,
    ) -> Result<Response<A>, Status> {
        let call = async {
            let caller = allowed(&request, scopes)?;
            let (load, prepared) = prepare(&caller, request.into_inner())?;
            let _place = match self.load.enter(load).await {
                Ok(place) => place,
                Err(Refused::Full) => {
                    metrics().shed.count(Shed::Queue);
                    return Err(Error::Overloaded);
                }
                Err(Refused::Late) => return Err(self.late(Shed::Queue).await),
            };
            match work(&self.pool, &caller, prepared).await {
                Err(Error::Overloaded) => Err(self.late(Shed::Database).await),
                answer => answer,
            }
        };
        let answer = match tokio::time::timeout(self.limits.timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(Shed::Database).await),
        };
        answer.map(Response::new).map_err(|error| refuse(&error))
    }
}

impl GrpcService {
    /// Why the store was too late for a call: there is too much to do, which sheds the call for
    /// this cause, or the database is gone.
    async fn late(&self, cause: Shed) -> Error {
        let why = self.pool.store().why_late().await;
        if matches!(why, Error::Overloaded) {
            metrics().shed.count(cause);
        }
        why
    }
}

/// The caller, if it has one of `scopes`.
fn allowed<Q>(request: &Request<Q>, scopes: &[Scope]) -> Result<Caller, Error> {
    let caller = request.extensions().get::<Caller>().ok_or(Error::TokenMissing)?;
    let [first, others @ ..] = scopes else { return Ok(caller.clone()) };
    if !others.iter().any(|scope| caller.scopes.contains(*scope)) {
        caller.require(*first)?;
    }
    Ok(caller.clone())
}

/// Gives the answers that tonic makes to a message it cannot read the form of all others: they
/// carry no details, and blame the server for what does not decode.
pub fn explain_unread<B: Default>(
    response: http::Response<B>,
    max_request_bytes: usize,
) -> http::Response<B> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS)
        || headers.contains_key(Status::GRPC_STATUS_DETAILS)
    {
        return response;
    }
    let Some(status) = Status::from_header_map(headers) else { return response };
    let problem = match status.code() {
        Code::OutOfRange => format!("must have at most {max_request_bytes} bytes"),
        Code::Internal => "must be the protobuf encoding of the request".to_owned(),
        // Too many fields: what the decoder refuses by itself.
        Code::InvalidArgument => {
            let too_many = Error::BatchTooLarge { field: "request", limit: MAX_REQUEST_FIELDS };
            return refuse(&too_many).into_http();
        }
        _ => return response,
    };
    // The whole message, which has no path.
    refuse(&Error::InvalidArgument(vec![FieldViolation::new("", problem)])).into_http()
}

/// The answer to a failed call. The one place that logs it.
pub(super) fn refuse(error: &Error) -> Status {
    let (code, reason) = status::code_and_reason(error);
    let reason = reason.wire_name();
    traces::failed(code_name(code.into()), reason);
    match error {
        Error::Internal(cause) => {
            let cause: &(dyn StdError + 'static) = cause.as_ref();
            tracing::error!(?code, reason, cause, "call failed");
        }
        Error::StoreUnavailable(cause) => {
            let cause: &(dyn StdError + 'static) = cause.as_ref();
            tracing::warn!(?code, reason, cause, "call failed");
        }
        Error::RateLimited { .. } | Error::Overloaded => {
            count_refused(error);
            tracing::debug!(?code, reason, "call refused");
        }
        _ => tracing::info!(?code, reason, "call refused"),
    }
    status::to_status(error)
}

#[tonic::async_trait]
impl KeyPackageService for GrpcService {
    async fn upload_key_packages(
        &self,
        request: Request<v1::UploadKeyPackagesRequest>,
    ) -> Result<Response<v1::UploadKeyPackagesResponse>, Status> {
        let prepare = |caller: &Caller, request| {
            let (packages, mode) = convert::upload(request)?;
            Ok((self.load.upload(caller, packages.len())?, (packages, mode)))
        };
        self.call(request, &[Scope::Publish], prepare, async |pool, caller, (packages, mode)| {
            let (results, status) = pool.upload(&caller.key, packages, mode).await?;
            Ok(convert::uploaded(results, status))
        })
        .await
    }

    async fn reserve_key_packages(
        &self,
        request: Request<v1::ReserveKeyPackagesRequest>,
    ) -> Result<Response<v1::ReserveKeyPackagesResponse>, Status> {
        let prepare = |caller: &Caller, request| {
            let request = convert::reserve(request)?;
            let load = self.load.reserve(caller, &request)?;
            Ok((load, (load, request)))
        };
        self.call(request, &[Scope::Reserve], prepare, async |pool, caller, (load, request)| {
            let mut asked = 0;
            let results = pool.reserve_counting(&caller.key, &request, &mut asked).await;
            self.load.reserved(caller, load, asked);
            Ok(convert::reserved(results?))
        })
        .await
    }

    async fn spend_key_packages(
        &self,
        request: Request<v1::SpendKeyPackagesRequest>,
    ) -> Result<Response<v1::SpendKeyPackagesResponse>, Status> {
        let prepare = |caller: &Caller, request| {
            let (ids, group_id) = convert::spend(request)?;
            Ok((self.load.settle(caller, ids.len())?, (ids, group_id)))
        };
        self.call(request, &[Scope::Reserve], prepare, async |pool, caller, (ids, group_id)| {
            let spent = pool.spend(&caller.key, &ids, &group_id).await?;
            Ok(convert::spent(ids, spent))
        })
        .await
    }

    async fn release_reservations(
        &self,
        request: Request<v1::ReleaseReservationsRequest>,
    ) -> Result<Response<v1::ReleaseReservationsResponse>, Status> {
        let prepare = |caller: &Caller, request| {
            let ids = convert::release(request)?;
            Ok((self.load.settle(caller, ids.len())?, ids))
        };
        self.call(request, &[Scope::Reserve], prepare, async |pool, caller, ids| {
            let released = pool.release(&caller.key, &ids).await?;
            Ok(convert::released(ids, released))
        })
        .await
    }

    async fn get_pool_status(
        &self,
        request: Request<v1::GetPoolStatusRequest>,
    ) -> Result<Response<v1::PoolStatus>, Status> {
        let prepare = |_: &Caller, _| Ok((Load::OWNER, ()));
        self.call(request, &[Scope::Publish], prepare, async |pool, caller, ()| {
            Ok(convert::pool_status(pool.status(&caller.key).await?))
        })
        .await
    }

    type WatchPoolStatusStream = Pin<Box<dyn Stream<Item = Result<v1::PoolStatus, Status>> + Send>>;

    async fn watch_pool_status(
        &self,
        request: Request<v1::WatchPoolStatusRequest>,
    ) -> Result<Response<Self::WatchPoolStatusStream>, Status> {
        let deadline = deadline::requested(request.metadata().as_ref());
        let opened = allowed(&request, &[Scope::Publish]).and_then(|caller| {
            self.pool.watch(&caller.key, self.limits.watch, deadline, self.stop.clone())
        });
        let statuses = opened.map_err(|error| refuse(&error))?;
        Ok(Response::new(Box::pin(
            statuses.map(|status| status.map(convert::pool_status).map_err(|error| refuse(&error))),
        )))
    }

    async fn revoke_key_packages(
        &self,
        request: Request<v1::RevokeKeyPackagesRequest>,
    ) -> Result<Response<v1::RevokeKeyPackagesResponse>, Status> {
        let prepare = |_: &Caller, request| Ok((Load::OWNER, convert::revoke(request)?));
        self.call(request, &[Scope::Publish], prepare, async |pool, caller, (client, selection)| {
            Ok(convert::revoked(pool.revoke(&caller.key, client, selection).await?))
        })
        .await
    }

    async fn list_pool_events(
        &self,
        request: Request<v1::ListPoolEventsRequest>,
    ) -> Result<Response<v1::ListPoolEventsResponse>, Status> {
        let prepare =
            |caller: &Caller, request| Ok((Load::OWNER, convert::event_request(caller, request)?));
        self.call(request, &[Scope::Publish, Scope::Audit], prepare, async |pool, _, request| {
            Ok(convert::event_page(pool.events(request).await?))
        })
        .await
    }
}
