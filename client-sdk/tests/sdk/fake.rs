//! A server that answers as it is told, over real tonic and a real socket.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use keypool_client::{Builder, Client, v1};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use v1::key_package_service_server::{KeyPackageService, KeyPackageServiceServer};

/// What the server does with the next calls.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Answers with as many packages as this, each of so many bytes.
    Serve { packages: usize, package_bytes: usize },
    /// Fails.
    Fail(Status),
    /// Never answers.
    Hang,
}

type Refuse = dyn Fn(&Asked) -> Option<Status> + Send;
type Answer = dyn Fn(&v1::ReserveKeyPackagesRequest) -> Vec<v1::ReserveResult> + Send;

/// Answers with one small package.
pub(crate) const SERVE: Behaviour = Behaviour::Serve { packages: 1, package_bytes: 300 };

/// What the server was asked, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Upload(v1::UploadKeyPackagesRequest),
    Reserve(v1::ReserveKeyPackagesRequest),
    Spend(v1::SpendKeyPackagesRequest),
    Release(v1::ReleaseReservationsRequest),
    Status,
    Watch,
    Revoke(v1::RevokeKeyPackagesRequest),
    Events(v1::ListPoolEventsRequest),
}

#[derive(Clone)]
struct Service {
    behaviour: Arc<Mutex<Behaviour>>,
    /// What comes first, each for one call.
    first: Arc<Mutex<VecDeque<Behaviour>>>,
    /// How a stream of states ends.
    stream_end: Arc<Mutex<Status>>,
    asked: Arc<Mutex<Vec<(MetadataMap, Asked)>>>,
    /// What is refused besides.
    refuse: Arc<Mutex<Option<Box<Refuse>>>>,
    /// How a Reserve is answered instead.
    reserved: Arc<Mutex<Option<Box<Answer>>>>,
}

/// A running server; stops when dropped.
pub(crate) struct Fake {
    address: SocketAddr,
    service: Service,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), behaviour)
    }

    pub(crate) fn start_on(listener: TcpListener, behaviour: Behaviour) -> Self {
        Self::start_with(Server::builder(), listener, behaviour)
    }

    pub(crate) async fn with_tls(tls: ServerTlsConfig) -> Self {
        let server = Server::builder().tls_config(tls).unwrap();
        Self::start_with(server, TcpListener::bind("127.0.0.1:0").await.unwrap(), SERVE)
    }

    fn start_with(mut server: Server, listener: TcpListener, behaviour: Behaviour) -> Self {
        let address = listener.local_addr().unwrap();
        let service = Service {
            behaviour: Arc::new(Mutex::new(behaviour)),
            first: Arc::default(),
            stream_end: Arc::new(Mutex::new(Status::unavailable("stopping"))),
            asked: Arc::default(),
            refuse: Arc::default(),
            reserved: Arc::default(),
        };
        let grpc = KeyPackageServiceServer::new(service.clone());
        let task = tokio::spawn(async move {
            server
                .add_service(grpc)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        });
        Self { address, service, task }
    }

    pub(crate) async fn serving() -> Self {
        Self::start(SERVE).await
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.service.behaviour.lock().unwrap() = behaviour;
    }

    /// Behaves like this first, each for one call.
    pub(crate) fn behave_first(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.service.first.lock().unwrap().extend(behaviours);
    }

    pub(crate) fn end_streams_with(&self, status: Status) {
        *self.service.stream_end.lock().unwrap() = status;
    }

    pub(crate) fn refuse_when(&self, refuse: impl Fn(&Asked) -> Option<Status> + Send + 'static) {
        *self.service.refuse.lock().unwrap() = Some(Box::new(refuse));
    }

    /// Answers each Reserve like this, while it behaves well.
    pub(crate) fn reserve_with(
        &self,
        answer: impl Fn(&v1::ReserveKeyPackagesRequest) -> Vec<v1::ReserveResult> + Send + 'static,
    ) {
        *self.service.reserved.lock().unwrap() = Some(Box::new(answer));
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.service.asked.lock().unwrap().iter().map(|(_, asked)| asked.clone()).collect()
    }

    pub(crate) fn metadata(&self, name: &str) -> Vec<Option<String>> {
        let text = |map: &MetadataMap| Some(map.get(name)?.to_str().unwrap().to_owned());
        self.service.asked.lock().unwrap().iter().map(|(map, _)| text(map)).collect()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn builder(&self) -> Builder {
        Client::builder(self.url(), "token")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    fn results(&self, request: &v1::ReserveKeyPackagesRequest) -> Option<Vec<v1::ReserveResult>> {
        self.reserved.lock().unwrap().as_ref().map(|answer| answer(request))
    }

    async fn serve<Q, A>(
        &self,
        request: Request<Q>,
        asked: impl FnOnce(Q) -> Asked,
        answer: impl FnOnce(usize, usize) -> A,
    ) -> Result<Response<A>, Status> {
        let (metadata, _, message) = request.into_parts();
        let asked = asked(message);
        self.asked.lock().unwrap().push((metadata, asked.clone()));
        if let Some(status) = self.refuse.lock().unwrap().as_ref().and_then(|it| it(&asked)) {
            return Err(status);
        }
        let first = self.first.lock().unwrap().pop_front();
        let behaviour = first.unwrap_or_else(|| self.behaviour.lock().unwrap().clone());
        match behaviour {
            Behaviour::Serve { packages, package_bytes } => {
                Ok(Response::new(answer(packages, package_bytes)))
            }
            Behaviour::Fail(status) => Err(status),
            Behaviour::Hang => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl KeyPackageService for Service {
    async fn upload_key_packages(
        &self,
        request: Request<v1::UploadKeyPackagesRequest>,
    ) -> Result<Response<v1::UploadKeyPackagesResponse>, Status> {
        self.serve(request, Asked::Upload, |_, _| v1::UploadKeyPackagesResponse::default()).await
    }

    async fn reserve_key_packages(
        &self,
        request: Request<v1::ReserveKeyPackagesRequest>,
    ) -> Result<Response<v1::ReserveKeyPackagesResponse>, Status> {
        let results = self.results(request.get_ref());
        let answer = |packages, package_bytes| {
            if let Some(results) = results {
                return v1::ReserveKeyPackagesResponse { results };
            }
            let reservation = v1::Reservation {
                reservation_id: "r".into(),
                key_package: vec![7; package_bytes].into(),
                ..Default::default()
            };
            let result = v1::ReserveResult {
                outcome: Some(v1::reserve_result::Outcome::Reservation(reservation)),
                ..Default::default()
            };
            v1::ReserveKeyPackagesResponse { results: vec![result; packages] }
        };
        self.serve(request, Asked::Reserve, answer).await
    }

    async fn spend_key_packages(
        &self,
        request: Request<v1::SpendKeyPackagesRequest>,
    ) -> Result<Response<v1::SpendKeyPackagesResponse>, Status> {
        self.serve(request, Asked::Spend, |_, _| v1::SpendKeyPackagesResponse::default()).await
    }

    async fn release_reservations(
        &self,
        request: Request<v1::ReleaseReservationsRequest>,
    ) -> Result<Response<v1::ReleaseReservationsResponse>, Status> {
        self.serve(request, Asked::Release, |_, _| v1::ReleaseReservationsResponse::default()).await
    }

    async fn get_pool_status(
        &self,
        request: Request<v1::GetPoolStatusRequest>,
    ) -> Result<Response<v1::PoolStatus>, Status> {
        self.serve(request, |_| Asked::Status, |_, _| v1::PoolStatus::default()).await
    }

    type WatchPoolStatusStream =
        futures_util::stream::Iter<std::vec::IntoIter<Result<v1::PoolStatus, Status>>>;

    /// As many states as there are packages, and then the end.
    async fn watch_pool_status(
        &self,
        request: Request<v1::WatchPoolStatusRequest>,
    ) -> Result<Response<Self::WatchPoolStatusStream>, Status> {
        let end = self.stream_end.lock().unwrap().clone();
        let answer = |packages, _| {
            let mut states = vec![Ok(v1::PoolStatus::default()); packages];
            states.push(Err(end));
            futures_util::stream::iter(states)
        };
        self.serve(request, |_| Asked::Watch, answer).await
    }

    async fn revoke_key_packages(
        &self,
        request: Request<v1::RevokeKeyPackagesRequest>,
    ) -> Result<Response<v1::RevokeKeyPackagesResponse>, Status> {
        self.serve(request, Asked::Revoke, |_, _| v1::RevokeKeyPackagesResponse::default()).await
    }

    async fn list_pool_events(
        &self,
        request: Request<v1::ListPoolEventsRequest>,
    ) -> Result<Response<v1::ListPoolEventsResponse>, Status> {
        self.serve(request, Asked::Events, |_, _| v1::ListPoolEventsResponse::default()).await
    }
}
