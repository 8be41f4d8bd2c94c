//! No call without a good token with the scope it needs.

use keypool_client::v1::{ErrorReason, key_package_service_client::KeyPackageServiceClient};
use keypool_proto::FILE_DESCRIPTOR_SET;
use keypool_service::{grpc::auth::Scope, token::TokenRequest};
use keypool_testing::server::{
    authorized, expired_token, token, token_of, token_request, token_with,
};
use prost::Message as _;
use tonic::{Request, Status, transport::Channel};

use super::*;

/// Every RPC of the contract.
fn rpcs() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = files.file.into_iter().flat_map(|file| file.service);
    services.flat_map(|service| service.method).map(|method| method.name().to_owned()).collect()
}

/// Any of these will do.
fn scopes_of(rpc: &str) -> &'static [Scope] {
    match rpc {
        "UploadKeyPackages" | "GetPoolStatus" | "WatchPoolStatus" | "RevokeKeyPackages" => {
            &[Scope::Publish]
        }
        "ReserveKeyPackages" | "SpendKeyPackages" | "ReleaseReservations" => &[Scope::Reserve],
        "ListPoolEvents" => &[Scope::Publish, Scope::Audit],
        other => panic!("no test knows the scope of {other}"),
    }
}

/// Calls with an empty message: who calls is judged before what.
async fn call(
    grpc: &mut KeyPackageServiceClient<Channel>,
    rpc: &str,
    token: Option<&str>,
) -> Result<(), Status> {
    fn with<T: Default>(token: Option<&str>) -> Request<T> {
        token.map_or_else(|| Request::new(T::default()), |token| authorized(token, T::default()))
    }
    match rpc {
        "UploadKeyPackages" => grpc.upload_key_packages(with(token)).await.map(drop),
        "ReserveKeyPackages" => grpc.reserve_key_packages(with(token)).await.map(drop),
        "SpendKeyPackages" => grpc.spend_key_packages(with(token)).await.map(drop),
        "ReleaseReservations" => grpc.release_reservations(with(token)).await.map(drop),
        "GetPoolStatus" => grpc.get_pool_status(with(token)).await.map(drop),
        "WatchPoolStatus" => grpc.watch_pool_status(with(token)).await.map(drop),
        "RevokeKeyPackages" => grpc.revoke_key_packages(with(token)).await.map(drop),
        "ListPoolEvents" => grpc.list_pool_events(with(token)).await.map(drop),
        other => panic!("no test calls {other}"),
    }
}

#[tokio::test]
async fn every_rpc_wants_a_good_token_with_its_scope() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut grpc = server.grpc().await;
    let good = token("bob", "phone");
    let strangers_key = {
        let folder = tempfile::TempDir::new().unwrap();
        keypool_service::token::SigningKey::load_or_create(&folder.path().join("key.pem")).unwrap()
    };
    let forged = token_of(&strangers_key, &token_request("bob", "phone"));
    let (body, _signature) = good.rsplit_once('.').unwrap();
    let unsigned = format!("{body}.");
    let expired = expired_token("bob", "phone");
    for rpc in rpcs() {
        let other_scopes: Vec<Scope> =
            Scope::ALL.into_iter().filter(|scope| !scopes_of(&rpc).contains(scope)).collect();
        let unscoped = token_with("bob", "phone", &other_scopes);
        for (token, reason) in [
            (None, ErrorReason::TokenMissing),
            (Some("nonsense"), ErrorReason::TokenInvalid),
            (Some(&*forged), ErrorReason::TokenInvalid),
            (Some(&*unsigned), ErrorReason::TokenInvalid),
            (Some(&*expired), ErrorReason::TokenExpired),
            (Some(&*unscoped), ErrorReason::ScopeMissing),
        ] {
            let refused: Rejection = call(&mut grpc, &rpc, token).await.unwrap_err().into();
            assert_eq!(refused.reason, Some(reason), "{rpc}: {refused:?}");
        }
        // With the scope and no other, the call gets as far as its empty message.
        for scope in scopes_of(&rpc) {
            let scoped = token_with("bob", "phone", &[*scope]);
            if let Err(status) = call(&mut grpc, &rpc, Some(&scoped)).await {
                let refused = Rejection::from(status);
                assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument), "{rpc}");
            } else {
                let without_arguments = ["GetPoolStatus", "WatchPoolStatus", "ListPoolEvents"];
                assert!(without_arguments.contains(&&*rpc), "{rpc}");
            }
        }
    }
}

#[tokio::test]
async fn audience_and_issuer_are_checked_where_they_are_configured() {
    let database = database().await;
    let strict = options().text("auth.audience", "pool").text("auth.issuer", "us");
    let server = Server::start(&database, &strict).await;
    let call = async |audience: &str, issuer: Option<&str>| {
        let request = TokenRequest {
            audience: audience.into(),
            issuer: issuer.map(Into::into),
            ..token_request("bob", "phone")
        };
        let token = keypool_testing::server::issue(&request);
        Client::connect(server.uri(), token).await.unwrap().pool_status().await
    };
    assert!(call("pool", Some("us")).await.is_ok());
    for (audience, issuer) in [("keypool", Some("us")), ("pool", Some("them")), ("pool", None)] {
        let refused = rejection(call(audience, issuer).await);
        assert_eq!(refused.reason, Some(ErrorReason::TokenInvalid), "{audience} {issuer:?}");
    }
}
