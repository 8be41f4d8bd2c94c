//! A call of every RPC of the contract.

use keypool_client::v1::key_package_service_client::KeyPackageServiceClient;
use keypool_proto::FILE_DESCRIPTOR_SET;
use keypool_service::grpc::auth::Scope;
use prost::Message as _;
use tonic::{Request, Status, transport::Channel};

use super::{tokens::scoped, *};

/// Every RPC of the contract.
pub(super) fn rpcs() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = files.file.into_iter().flat_map(|file| file.service);
    services.flat_map(|service| service.method).map(|method| method.name().to_owned()).collect()
}

/// Any of these will do.
pub(super) fn scopes_of(rpc: &str) -> &'static [Scope] {
    match rpc {
        "UploadKeyPackages" | "GetPoolStatus" | "WatchPoolStatus" | "RevokeKeyPackages" => {
            &[Scope::Publish]
        }
        "ReserveKeyPackages" | "SpendKeyPackages" | "ReleaseReservations" => &[Scope::Reserve],
        "ListPoolEvents" => &[Scope::Publish, Scope::Audit],
        other => panic!("no test knows the scope of {other}"),
    }
}

/// The messages of calls that alice's phone may make, one of each.
pub(super) struct Messages {
    pub(super) upload: v1::UploadKeyPackagesRequest,
    pub(super) reserve: v1::ReserveKeyPackagesRequest,
    pub(super) spend: v1::SpendKeyPackagesRequest,
    pub(super) release: v1::ReleaseReservationsRequest,
    pub(super) revoke: v1::RevokeKeyPackagesRequest,
    pub(super) events: v1::ListPoolEventsRequest,
}

impl Messages {
    /// Bob and alice have pools, and alice holds two reservations of bob's.
    pub(super) async fn prepare(server: &Server) -> Self {
        let client = async |user: &str| {
            Client::connect(server.uri(), scoped(user, "phone", &Scope::ALL)).await.unwrap()
        };
        let (alice, bob) = (client("alice").await, client("bob").await);
        publish(&bob, packages("bob", 4)).await;
        publish(&alice, packages("alice", 2)).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(reserve_one(&alice, &one_of("bob")).await.reservation_id);
        }
        Self {
            upload: v1::UploadKeyPackagesRequest {
                key_packages: packages("alice", 1).into_iter().map(Into::into).collect(),
                mode: 0,
            },
            reserve: one_of("bob").message().clone(),
            spend: v1::SpendKeyPackagesRequest {
                reservation_ids: vec![held[0].clone()],
                group_id: GROUP.into(),
            },
            release: v1::ReleaseReservationsRequest { reservation_ids: vec![held[1].clone()] },
            revoke: v1::RevokeKeyPackagesRequest {
                client_id: "phone".into(),
                all: true,
                ..Default::default()
            },
            events: v1::ListPoolEventsRequest {
                user_id: "alice".into(),
                client_id: "phone".into(),
                ..Default::default()
            },
        }
    }

    pub(super) async fn call(
        &self,
        grpc: &mut KeyPackageServiceClient<Channel>,
        rpc: &str,
        token: Option<&str>,
    ) -> Result<(), Status> {
        let bearer: Vec<String> = token.iter().map(|token| format!("Bearer {token}")).collect();
        self.call_with(grpc, rpc, &bearer).await
    }

    /// With these `authorization` headers.
    pub(super) async fn call_with(
        &self,
        grpc: &mut KeyPackageServiceClient<Channel>,
        rpc: &str,
        token: &[String],
    ) -> Result<(), Status> {
        fn with<T>(headers: &[String], message: T) -> Request<T> {
            let mut request = Request::new(message);
            for header in headers {
                request.metadata_mut().append("authorization", header.parse().unwrap());
            }
            request
        }
        match rpc {
            "UploadKeyPackages" => {
                grpc.upload_key_packages(with(token, self.upload.clone())).await.map(drop)
            }
            "ReserveKeyPackages" => {
                grpc.reserve_key_packages(with(token, self.reserve.clone())).await.map(drop)
            }
            "SpendKeyPackages" => {
                grpc.spend_key_packages(with(token, self.spend.clone())).await.map(drop)
            }
            "ReleaseReservations" => {
                grpc.release_reservations(with(token, self.release.clone())).await.map(drop)
            }
            "GetPoolStatus" => {
                grpc.get_pool_status(with(token, v1::GetPoolStatusRequest {})).await.map(drop)
            }
            "WatchPoolStatus" => {
                grpc.watch_pool_status(with(token, v1::WatchPoolStatusRequest {})).await.map(drop)
            }
            "RevokeKeyPackages" => {
                grpc.revoke_key_packages(with(token, self.revoke.clone())).await.map(drop)
            }
            "ListPoolEvents" => {
                grpc.list_pool_events(with(token, self.events.clone())).await.map(drop)
            }
            other => panic!("no test calls {other}"),
        }
    }
}
