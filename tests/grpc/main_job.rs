//! A KeyPackage uploaded, reserved, spent, and a member who joins with it.

use keypool_client::Reserve;
use keypool_testing::{
    forge::mls_message,
    member::{Libcrux, Member},
    server::Server,
};
use openmls::prelude::{Lifetime, OpenMlsProvider};

use super::*;

/// All suites that the sample configuration allows, and two post-quantum ones.
const ALLOWED: &str = "[1, 2, 3, 0x4d, 0x4f]";

/// Which KeyPackage Bob publishes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    InMlsMessage,
    LastResort,
}

/// The whole way, as `user` who adds `friend`.
async fn adds<P: OpenMlsProvider>(
    server: &Server,
    mut adder: Member<P>,
    mut owner: Member<P>,
    suite: u16,
    kind: Kind,
) {
    let user = owner.client.user.to_string();
    let theirs = server.client(&user, "phone").await;
    let mine = server.client(adder.client.user.as_str(), "laptop").await;

    let made = owner.key_package(kind == Kind::LastResort, Lifetime::new(86_400));
    let sent = if kind == Kind::InMlsMessage { mls_message(1, 5, &made) } else { made.clone() };
    publish(&theirs, vec![sent]).await;

    let group_id = adder.create_group();
    let request = Reserve::new(group_id.clone(), suite).target(&user);
    let reservation = reserve_one(&mine, &request).await;
    assert_eq!(reservation.key_package, made, "without an MLSMessage around it");
    assert_eq!(reservation.last_resort, kind == Kind::LastResort);

    let invitation = adder.add(&[reservation.key_package.to_vec()]);
    adder.merge_commit();
    let spent = mine.spend(group_id.clone(), [&reservation.reservation_id]).await.unwrap();
    assert_eq!(spent.len(), 1);
    assert_eq!(spent[0].key_package_ref, reservation.key_package_ref);
    assert!(!spent[0].already_spent);

    assert_eq!(owner.join(&invitation.welcome), group_id);
    let message = adder.send(b"welcome!");
    assert_eq!(owner.receive(&message).as_deref(), Some(&b"welcome!"[..]));
    let reply = owner.send(b"thanks");
    assert_eq!(adder.receive(&reply).as_deref(), Some(&b"thanks"[..]));

    let counts = counts(&theirs).await;
    assert_eq!(counts.cipher_suite, u32::from(suite));
    assert_eq!((counts.available, counts.reserved), (0, 0));
    let (spent, issued) = if kind == Kind::LastResort { (0, Some(1)) } else { (1, None) };
    assert_eq!(counts.spent, spent);
    assert_eq!(counts.last_resort.map(|package| package.times_issued), issued);
}

async fn adds_with<P: OpenMlsProvider + Default>(suite: u16) {
    let database = database().await;
    let server = Server::start(&database, &options().set("upload.cipher_suites", ALLOWED)).await;
    for (kind, user) in
        [(Kind::Plain, "bob"), (Kind::InMlsMessage, "carol"), (Kind::LastResort, "dave")]
    {
        let adder = Member::on(P::default(), "alice", "laptop", suite);
        let owner = Member::on(P::default(), user, "phone", suite);
        adds(&server, adder, owner, suite, kind).await;
    }
}

#[tokio::test]
async fn a_member_joins_with_suite_1() {
    adds_with::<keypool_testing::member::RustCrypto>(1).await;
}

#[tokio::test]
async fn a_member_joins_with_suite_2() {
    adds_with::<keypool_testing::member::RustCrypto>(2).await;
}

#[tokio::test]
async fn a_member_joins_with_suite_3() {
    adds_with::<keypool_testing::member::RustCrypto>(3).await;
}

#[tokio::test]
async fn a_member_joins_with_x_wing() {
    adds_with::<Libcrux>(0x4d).await;
}

#[tokio::test]
async fn a_member_joins_with_ml_kem_and_x25519() {
    adds_with::<keypool_testing::member::RustCrypto>(0x4f).await;
}

#[tokio::test]
async fn a_whole_group_is_added_by_one_reserve_and_one_spend() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut alice = Member::new("alice", "laptop", SUITE);
    let mut others = Vec::new();
    for (user, client) in [("bob", "phone"), ("bob", "tablet"), ("alice", "phone")] {
        let member = Member::new(user, client, SUITE);
        let package = member.key_package(false, Lifetime::new(86_400));
        publish(&server.client(user, client).await, vec![package]).await;
        others.push(member);
    }
    let mine = server.client("alice", "laptop").await;
    publish(&mine, packages("alice", 1)).await;

    let group_id = alice.create_group();
    let request = Reserve::new(group_id.clone(), SUITE).target("bob").target("alice");
    let answer = mine.reserve(&request.all_or_nothing()).await.unwrap();
    let clients: Vec<(&str, &str)> =
        answer.results.iter().map(|it| (&*it.user_id, &*it.client_id)).collect();
    let but_the_caller = [("bob", "phone"), ("bob", "tablet"), ("alice", "phone")];
    assert_eq!(clients, but_the_caller);

    let packages: Vec<Vec<u8>> = answer.reservations().map(|it| it.key_package.to_vec()).collect();
    let invitation = alice.add(&packages);
    alice.merge_commit();
    let ids = answer.reservations().map(|it| it.reservation_id.clone());
    assert_eq!(mine.spend(group_id, ids).await.unwrap().len(), 3);
    let message = alice.send(b"hi all");
    for member in &mut others {
        member.join(&invitation.welcome);
        assert_eq!(member.receive(&message).as_deref(), Some(&b"hi all"[..]));
    }
}
