//! The sizes that the contract names, from both sides of each bound.

use keypool_client::{
    Code,
    v1::{ErrorReason, RejectReason},
};
use keypool_testing::tokens::{authorized, token};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::*;

const MAX_BYTES: usize = 20 * 1024;

/// A good package of exactly so many bytes.
fn package_of(user_id: &str, bytes: usize) -> Vec<u8> {
    let with_padding = |len: usize| package(user_id).extension(0xf0aa, &vec![7; len]).build();
    let overhead = with_padding(bytes - 1000).len() - (bytes - 1000);
    let package = with_padding(bytes - overhead);
    assert_eq!(package.len(), bytes);
    package
}

#[tokio::test]
async fn a_package_has_at_most_20_kib() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let bob = server.client("bob", "phone").await;
    let fits = package_of("bob", MAX_BYTES);
    let sent = [fits.clone(), package_of("bob", MAX_BYTES + 1)];
    let answer = bob.upload(sent).await.unwrap();
    assert!(answer.results[0].accepted().is_some(), "{answer:?}");
    assert_eq!(answer.results[1].rejected().unwrap().reason(), RejectReason::Malformed);
    let reservation = reserve_one(&server.client("alice", "phone").await, &one_of("bob")).await;
    assert_eq!(reservation.key_package, fits);
}

#[tokio::test]
async fn an_upload_has_at_most_100_packages_of_full_size() {
    let database = database().await;
    let server = Server::start(&database, &options().set("pool.hard_cap", 100)).await;
    let bob = server.client("bob", "phone").await;
    let full: Vec<Vec<u8>> = (0..100).map(|_| package_of("bob", MAX_BYTES)).collect();
    let status = publish(&bob, full.clone()).await;
    assert_eq!(status.cipher_suites[0].available, 100);
    let one_more = [full, packages("bob", 1)].concat();
    let refused = rejection(bob.upload(one_more).await);
    assert_eq!(refused.reason, Some(ErrorReason::BatchTooLarge));
}

#[tokio::test]
async fn a_message_beyond_all_limits_is_refused_as_the_callers_mistake() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let bob = server.client("bob", "phone").await;
    let refused = rejection(bob.upload([vec![7; 5 * 1024 * 1024]]).await);
    assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
    assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument));
    assert_eq!(refused.field_violations[0].description, "must have at most 4194304 bytes");
    bob.pool_status().await.unwrap();
}

#[tokio::test]
async fn a_message_that_does_not_decode_is_refused_as_the_callers_mistake() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    // Where the other call has texts, this one has bytes; these are not UTF-8.
    let bytes = v1::UploadKeyPackagesRequest { key_packages: vec![vec![0xff].into()], mode: 0 };
    let path = PathAndQuery::from_static("/keypool.v1.KeyPackageService/ReleaseReservations");
    let codec: ProstCodec<_, v1::ReleaseReservationsResponse> = ProstCodec::default();
    let mut grpc = Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let answer = grpc.unary(authorized(&token("bob", "phone"), bytes), path, codec).await;
    let refused: Rejection = answer.unwrap_err().into();
    assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
    assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument), "{refused:?}");
}

/// More than the 4 MiB that gRPC clients take by default, and than requests may have.
#[tokio::test]
async fn an_answer_with_many_large_packages_arrives() {
    const CLIENTS: usize = 220;
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let large: Vec<Vec<u8>> = (0..CLIENTS).map(|_| package_of("bob", MAX_BYTES)).collect();
    let mut grpc = server.grpc().await;
    for (n, package) in large.iter().enumerate() {
        let key_packages = vec![package.clone().into()];
        let request = v1::UploadKeyPackagesRequest { key_packages, mode: 0 };
        let owner = token("bob", &format!("{n:03}"));
        let answer = grpc.upload_key_packages(authorized(&owner, request)).await.unwrap();
        assert!(answer.into_inner().results[0].accepted().is_some());
    }
    let request = Reserve::new(GROUP, SUITE).target("bob").all_or_nothing();
    let answer = server.client("alice", "phone").await.reserve(&request).await.unwrap();
    let got: Vec<_> = answer.reservations().map(|it| it.key_package.to_vec()).collect();
    assert!(got == large, "all of them, in the order of the clients' ids");
}
