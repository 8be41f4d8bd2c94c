use std::future::ready;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keypool_proto::v1;

use crate::{Builder, Error, Reserve, TokenSource, transport::Transport};

/// One client (device) of keypool, as its token names it.
///
/// Cheap to clone; clones share their connections, which are made again when they break. Every
/// call ends by the deadline and may be dropped at any await: the server is then told to stop, and
/// the client stays usable. Whether a dropped call took effect is unknown until it is repeated,
/// which is safe for each of them; the client itself repeats what failed for a passing reason.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
}

impl Client {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport }
    }

    /// Connects to `uri` (`https://host:port`, or `http://` without TLS), with the defaults of [`Client::builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(
        uri: impl Into<String>,
        token: impl Into<TokenSource>,
    ) -> Result<Self, Error> {
        Self::builder(uri, token).connect().await
    }

    /// Starts a client of the server at `uri` (`https://host:port`, or `http://` without TLS).
    pub fn builder(uri: impl Into<String>, token: impl Into<TokenSource>) -> Builder {
        Builder::new(uri.into(), token.into())
    }

    /// Adds KeyPackages to this client's own pool: 1 to 100 of at most 20 KiB, each the TLS
    /// encoding of a KeyPackage or of an MLSMessage that wraps one (RFC 9420, sections 6, 10).
    ///
    /// Each package is judged on its own, so look at every result. Needs the scope
    /// `keypool.publish`.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the call as a whole is refused; otherwise as any call.
    pub async fn upload<P: Into<Bytes>>(
        &self,
        key_packages: impl IntoIterator<Item = P>,
    ) -> Result<v1::UploadKeyPackagesResponse, Error> {
        self.upload_as(v1::UploadMode::Add, key_packages).await
    }

    /// As [`Client::upload`], and in the same transaction revokes this client's packages whose
    /// signature key or credential is not among those added: credential rotation that never
    /// leaves the pool empty.
    ///
    /// # Errors
    /// As [`Client::upload`].
    pub async fn upload_replacing_other_credentials<P: Into<Bytes>>(
        &self,
        key_packages: impl IntoIterator<Item = P>,
    ) -> Result<v1::UploadKeyPackagesResponse, Error> {
        self.upload_as(v1::UploadMode::ReplaceOtherCredentials, key_packages).await
    }

    async fn upload_as<P: Into<Bytes>>(
        &self,
        mode: v1::UploadMode,
        key_packages: impl IntoIterator<Item = P>,
    ) -> Result<v1::UploadKeyPackagesResponse, Error> {
        let message = v1::UploadKeyPackagesRequest {
            key_packages: key_packages.into_iter().map(Into::into).collect(),
            mode: mode.into(),
        };
        self.transport
            .call(
                message,
                |mut grpc, request| async move { grpc.upload_key_packages(request).await },
            )
            .await
    }

    /// Reserves one KeyPackage for each client of each target user. Needs the scope
    /// `keypool.reserve`.
    ///
    /// A client that gave no package has a result that says why.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`], [`Error::NoCompatibleKeyPackage`] or [`Error::Quota`] when exactly
    /// one client was asked for and gave none, or any of several with
    /// [`Reserve::all_or_nothing`]; otherwise as any call.
    pub async fn reserve(
        &self,
        reserve: &Reserve,
    ) -> Result<v1::ReserveKeyPackagesResponse, Error> {
        self.transport
            .call(reserve.message().clone(), |mut grpc, request| async move {
                grpc.reserve_key_packages(request).await
            })
            .await
    }

    /// Settles reservations, 1 to 1,000 and all or nothing, once the Commit that used their
    /// packages was accepted. `group_id` is the group they were reserved for. Repeating a Spend
    /// succeeds. Needs the scope `keypool.reserve`.
    ///
    /// # Errors
    /// [`Error::ReservationUnknown`], [`Error::ReservationLost`], [`Error::ReservationNotHeld`], or
    /// [`v1::ErrorReason::GroupMismatch`]; otherwise as any call.
    pub async fn spend<I: Into<String>>(
        &self,
        group_id: impl Into<Bytes>,
        reservation_ids: impl IntoIterator<Item = I>,
    ) -> Result<Vec<v1::SpendResult>, Error> {
        let message = v1::SpendKeyPackagesRequest {
            reservation_ids: reservation_ids.into_iter().map(Into::into).collect(),
            group_id: group_id.into(),
        };
        let answer = self.transport.call(message, |mut grpc, request| async move {
            grpc.spend_key_packages(request).await
        });
        Ok(answer.await?.results)
    }

    /// Hands reservations back, 1 to 1,000 and all or nothing, when their packages are not
    /// needed. Repeating a Release succeeds. Needs the scope `keypool.reserve`.
    ///
    /// # Errors
    /// [`Error::ReservationUnknown`] or [`Error::ReservationNotHeld`]; otherwise as any call.
    pub async fn release<I: Into<String>>(
        &self,
        reservation_ids: impl IntoIterator<Item = I>,
    ) -> Result<Vec<v1::ReleaseResult>, Error> {
        let message = v1::ReleaseReservationsRequest {
            reservation_ids: reservation_ids.into_iter().map(Into::into).collect(),
        };
        let answer = self.transport.call(message, |mut grpc, request| async move {
            grpc.release_reservations(request).await
        });
        Ok(answer.await?.results)
    }

    /// The counts of this client's own pool, and what to do about them. Needs the scope
    /// `keypool.publish`.
    ///
    /// # Errors
    /// As any call.
    pub async fn pool_status(&self) -> Result<v1::PoolStatus, Error> {
        self.transport
            .call(v1::GetPoolStatusRequest {}, |mut grpc, request| async move {
                grpc.get_pool_status(request).await
            })
            .await
    }

    /// This client's own pool: how it stands now, and again when it runs low or packages are about
    /// to expire. The newest state only, at least once. The server ends the stream from time to
    /// time, and when it is about to stop; open another then, and nothing is missed. Needs the scope
    /// `keypool.publish`.
    ///
    /// # Errors
    /// As any call; the stream ends after an error. The deadline is for opening the stream.
    pub async fn watch_pool_status(
        &self,
    ) -> Result<impl Stream<Item = Result<v1::PoolStatus, Error>> + Send + use<>, Error> {
        let open =
            self.transport.open(v1::WatchPoolStatusRequest {}, |mut grpc, request| async move {
                grpc.watch_pool_status(request).await
            });
        let (statuses, bearer) = open.await?;
        let token = self.transport.token.clone();
        let statuses = statuses.then(move |status| {
            let (token, bearer) = (token.clone(), bearer.clone());
            async move {
                let status = status.map_err(Error::from);
                if let Err(Error::TokenExpired(_)) = &status {
                    token.renew(&bearer).await; // for the next stream
                }
                status
            }
        });
        // No failure: another replica, or the next one here, goes on.
        let stops = |error: &Error| error.reason() == Some(v1::ErrorReason::ShuttingDown);
        Ok(statuses.take_while(move |it| ready(!it.as_ref().is_err_and(stops))))
    }

    /// Withdraws packages of this client, or of another client of the same user. Needs the scope
    /// `keypool.publish`.
    ///
    /// # Errors
    /// As any call.
    pub async fn revoke(
        &self,
        request: v1::RevokeKeyPackagesRequest,
    ) -> Result<v1::RevokeKeyPackagesResponse, Error> {
        self.transport
            .call(
                request,
                |mut grpc, request| async move { grpc.revoke_key_packages(request).await },
            )
            .await
    }

    /// One page of what became of each package, newest first. Needs the scope `keypool.audit`,
    /// or `keypool.publish` for this client's own pool.
    ///
    /// # Errors
    /// As any call.
    pub async fn pool_events(
        &self,
        request: v1::ListPoolEventsRequest,
    ) -> Result<v1::ListPoolEventsResponse, Error> {
        self.transport
            .call(request, |mut grpc, request| async move { grpc.list_pool_events(request).await })
            .await
    }
}
