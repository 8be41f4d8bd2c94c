//! Groups that are invited as a whole.

use futures_util::future::join_all;
use keypool_client::{Reserve, v1::RequiredCapabilities};
use openmls::prelude::{MlsMessageOut, tls_codec::Serialize as _};

use super::*;

fn bytes(message: &MlsMessageOut) -> Vec<u8> {
    message.tls_serialize_detached().unwrap()
}

#[tokio::test]
async fn a_hundred_users_are_invited_in_one_call_and_join() {
    let (_database, server) = server().await;
    let users: Vec<_> = (0..100).map(|number| format!("user {number}")).collect();
    let mut members = join_all(users.iter().map(|user| member(&server, user))).await;
    let (mut alice, _) = member(&server, "alice").await;
    let (group, provider, signer) = alice.group();
    let (invites, store) = invites_in_memory(&server, "alice").await;
    let ask = users.iter().fold(Reserve::for_group(group), |ask, user| ask.target(user));
    let mut invitation = invite(&invites, &ask).await;
    assert_eq!((invitation.invitees().len(), invitation.missing().len()), (100, 0));
    assert_eq!(store.invitations().unwrap().len(), 1, "one call");
    let messages = invitation.add_to(group, provider, signer).unwrap();
    alice.merge_commit();
    assert_eq!(invitation.spend().await.unwrap().spent, 100);
    for (joiner, owner) in [&mut members.remove(99), &mut members.remove(0)] {
        assert_eq!(counts(owner).await, (STOCK as u32 - 1, 0, 1));
        joiner.join(&bytes(&messages.welcome));
        let text = alice.send(b"welcome");
        assert_eq!(joiner.receive(&text).as_deref(), Some(&b"welcome"[..]));
    }
}

#[tokio::test]
async fn who_gives_no_package_is_named_and_the_others_join() {
    let (_database, server) = server().await;
    let (mut bob, _) = member(&server, "bob").await;
    let (mut alice, _) = member(&server, "alice").await;
    let (group, provider, signer) = alice.group();
    let (invites, _) = invites_in_memory(&server, "alice").await;
    let ask = Reserve::for_group(group).target("nobody").target("bob");
    let mut invitation = invite(&invites, &ask).await;
    let [missing] = invitation.missing() else { panic!("{:?}", invitation.missing()) };
    assert_eq!(
        (missing.user_id.as_str(), missing.reason.to_string().as_str()),
        ("nobody", "no package is left")
    );
    let messages = invitation.add_to(group, provider, signer).unwrap();
    alice.merge_commit();
    invitation.spend().await.unwrap();
    bob.join(&bytes(&messages.welcome));

    let required = RequiredCapabilities { extension_types: vec![0xf00f], ..Default::default() };
    let (group, ..) = alice.group();
    let ask = Reserve::for_group(group).target("bob").required_capabilities(required);
    let invitation = invite(&invites, &ask).await;
    assert_eq!(invitation.missing()[0].reason.to_string(), "no package fits the group");
}
