use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keypool_proto::v1::{self, key_package_service_client::KeyPackageServiceClient};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{Error, Reserve, TokenSource};

const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// A Reserve may answer with 1,000 packages of 20 KiB.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// One client (device) of keypool, as its token names it.
///
/// Cheap to clone; clones share one connection, which is made again when it breaks. Every call
/// ends by the deadline and may be dropped at any await: the server is then told to stop, and
/// the client stays usable. Whether a dropped call took effect is unknown until it is repeated,
/// which is safe for each of them.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: KeyPackageServiceClient<Channel>,
    token: TokenSource,
    deadline: Duration,
}

impl Client {
    /// Connects to `uri` (`http://host:port`), with the defaults of [`Client::builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(
        uri: impl Into<String>,
        token: impl Into<TokenSource>,
    ) -> Result<Self, Error> {
        Self::builder(uri, token).connect().await
    }

    /// Starts a client of the server at `uri` (`http://host:port`).
    pub fn builder(uri: impl Into<String>, token: impl Into<TokenSource>) -> Builder {
        Builder { uri: uri.into(), token: token.into(), deadline: DEFAULT_DEADLINE }
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
        self.call(
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
    /// [`Error::Rejected`] with [`v1::ErrorReason::PoolExhausted`] and the like when exactly one
    /// client was asked for and gave none, or any of several with [`Reserve::all_or_nothing`];
    /// otherwise as any call.
    pub async fn reserve(
        &self,
        reserve: &Reserve,
    ) -> Result<v1::ReserveKeyPackagesResponse, Error> {
        self.call(reserve.message().clone(), |mut grpc, request| async move {
            grpc.reserve_key_packages(request).await
        })
        .await
    }

    /// Settles reservations, 1 to 1,000 and all or nothing, once the Commit that used their
    /// packages was accepted. `group_id` is the group they were reserved for. Repeating a Spend
    /// succeeds. Needs the scope `keypool.reserve`.
    ///
    /// # Errors
    /// [`Error::Rejected`] with [`v1::ErrorReason::ReservationUnknown`],
    /// [`v1::ErrorReason::ReservationLost`], [`v1::ErrorReason::ReservationNotHeld`] or
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
        let answer = self.call(message, |mut grpc, request| async move {
            grpc.spend_key_packages(request).await
        });
        Ok(answer.await?.results)
    }

    /// Hands reservations back, 1 to 1,000 and all or nothing, when their packages are not
    /// needed. Repeating a Release succeeds. Needs the scope `keypool.reserve`.
    ///
    /// # Errors
    /// [`Error::Rejected`] with [`v1::ErrorReason::ReservationUnknown`] or
    /// [`v1::ErrorReason::ReservationNotHeld`]; otherwise as any call.
    pub async fn release<I: Into<String>>(
        &self,
        reservation_ids: impl IntoIterator<Item = I>,
    ) -> Result<Vec<v1::ReleaseResult>, Error> {
        let message = v1::ReleaseReservationsRequest {
            reservation_ids: reservation_ids.into_iter().map(Into::into).collect(),
        };
        let answer = self.call(message, |mut grpc, request| async move {
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
        self.call(v1::GetPoolStatusRequest {}, |mut grpc, request| async move {
            grpc.get_pool_status(request).await
        })
        .await
    }

    /// This client's own pool: how it stands now, and again when it runs low or packages are about
    /// to expire. The newest state only, at least once. The server ends the stream from time to
    /// time; open another then, and nothing is missed. Needs the scope `keypool.publish`.
    ///
    /// # Errors
    /// As any call; the stream ends after an error. The deadline is for opening the stream.
    pub async fn watch_pool_status(
        &self,
    ) -> Result<impl Stream<Item = Result<v1::PoolStatus, Error>> + Send + use<>, Error> {
        let open = async {
            let mut request = Request::new(v1::WatchPoolStatusRequest {});
            request.metadata_mut().insert("authorization", self.token.authorization().await?);
            Ok(self.grpc.clone().watch_pool_status(request).await?.into_inner())
        };
        let statuses = tokio::time::timeout(self.deadline, open).await;
        let statuses = statuses.unwrap_or(Err(Error::DeadlineExceeded))?;
        Ok(statuses.map(|status| status.map_err(Error::from)))
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
        self.call(
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
        self.call(request, |mut grpc, request| async move { grpc.list_pool_events(request).await })
            .await
    }

    /// One call: token, deadline, typed errors.
    async fn call<Q, A, F>(
        &self,
        message: Q,
        send: impl FnOnce(KeyPackageServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answer = async {
            let mut request = Request::new(message);
            request.metadata_mut().insert("authorization", self.token.authorization().await?);
            request.set_timeout(self.deadline); // tells the server
            Ok(send(self.grpc.clone(), request).await?.into_inner())
        };
        tokio::time::timeout(self.deadline, answer).await.unwrap_or(Err(Error::DeadlineExceeded))
    }
}

/// How a [`Client`] connects.
#[derive(Debug, Clone)]
#[must_use = "a Builder does nothing until it connects"]
pub struct Builder {
    uri: String,
    token: TokenSource,
    deadline: Duration,
}

impl Builder {
    /// How long making the connection, and each call, may take: 10 s unless set, at most a day.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// Connects now.
    ///
    /// # Errors
    /// [`Error::Config`] when the URI will not do, [`Error::Transport`] when nothing listens
    /// there, [`Error::DeadlineExceeded`].
    pub async fn connect(self) -> Result<Client, Error> {
        let connect = self.endpoint()?;
        match tokio::time::timeout(self.deadline, connect.connect()).await {
            Ok(channel) => {
                Ok(self.client(channel.map_err(|error| Error::Transport(error.into()))?))
            }
            Err(_) => Err(Error::DeadlineExceeded),
        }
    }

    /// Connects at the first call, and so also while the server is not up yet.
    ///
    /// # Errors
    /// [`Error::Config`] when the URI will not do, or outside of a Tokio runtime.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        let endpoint = self.endpoint()?;
        tokio::runtime::Handle::try_current()
            .map_err(|_| Error::Config("a client needs a Tokio runtime".into()))?;
        Ok(self.client(endpoint.connect_lazy()))
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let endpoint = Endpoint::from_shared(self.uri.clone())
            .map_err(|_| Error::Config("the server's address is not a URI".into()))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(Error::Config("the server's address must begin with http://".into()));
        }
        endpoint
            .user_agent(concat!("keypool-client/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Error::Config(error.to_string()))
            .map(|endpoint| {
                endpoint
                    .connect_timeout(self.deadline)
                    .http2_keep_alive_interval(Duration::from_secs(30))
                    .keep_alive_timeout(Duration::from_secs(10))
            })
    }

    fn client(self, channel: Channel) -> Client {
        Client {
            grpc: KeyPackageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES),
            token: self.token,
            deadline: self.deadline,
        }
    }
}
