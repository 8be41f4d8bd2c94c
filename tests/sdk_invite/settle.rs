//! Reservations that lapse, are dropped, or whose server goes away.

use std::time::Duration;

use keypool_client::{Error, InviteError};
use keypool_testing::server::until;

use super::*;

fn ask() -> Reserve {
    Reserve::new(&b"the group of the test"[..], SUITE).target("bob")
}

#[tokio::test]
async fn a_dropped_invitation_goes_back_to_its_pool() {
    let (_database, server) = server().await;
    let (_, bob) = member(&server, "bob").await;
    let (invites, store) = invites_in_memory(&server, "alice").await;
    let invitation = invite(&invites, &ask()).await;
    assert_eq!(counts(&bob).await, (2, 1, 0));
    drop(invitation);
    until(async || counts(&bob).await == (3, 0, 0)).await;
    until(async || store.invitations().unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_spend_after_the_lapse_succeeds_while_nobody_else_got_the_package() {
    let (_database, server) = server().await;
    let (_, bob) = member(&server, "bob").await;
    let (invites, store) = invites_in_memory(&server, "alice").await;
    let invitation = invite(&invites, &ask().ttl(Duration::from_millis(1))).await;
    let lapse = invitation.expires_at().unwrap();
    until(async || lapse.elapsed().is_ok_and(|since| since > Duration::from_secs(1))).await;
    let settlement = invitation.spend().await.unwrap();
    assert_eq!((settlement.spent, settlement.lost.len()), (1, 0));
    assert_eq!(counts(&bob).await, (2, 0, 1));
    assert_eq!(store.invitations().unwrap(), []);
}

#[tokio::test]
async fn a_package_that_someone_else_got_after_the_lapse_is_lost_and_the_rest_is_spent() {
    let (_database, server) = server().await;
    let (_, bob) = member(&server, "bob").await;
    let (_, carol) = member(&server, "carol").await;
    let (invites, store) = invites_in_memory(&server, "alice").await;
    let short = ask().target("carol").ttl(Duration::from_millis(1));
    let invitation = invite(&invites, &short).await;
    let lost = invitation.invitees()[0].key_package_ref.clone();
    // Others take what they can get until they have Bob's package, too.
    let other = server.client("dave", "phone").await;
    until(async || {
        let long = ask().ttl(Duration::from_secs(600));
        let Ok(answer) = other.reserve(&long).await else { return false };
        answer.reservations().any(|it| it.key_package_ref == lost)
    })
    .await;
    let settlement = invitation.spend().await.unwrap();
    assert_eq!((settlement.spent, settlement.lost.len()), (1, 1));
    assert_eq!(settlement.lost[0].key_package_ref, lost);
    assert!(matches!(settlement.lost[0].error, Error::ReservationLost(_)), "{settlement:?}");
    assert_eq!(counts(&bob).await, (0, 3, 0));
    assert_eq!(counts(&carol).await.2, 1);
    assert_eq!(store.invitations().unwrap(), []);
}

#[tokio::test]
async fn an_invitation_outlives_a_server_that_is_gone_and_back() {
    let (database, server) = server().await;
    let (_, bob) = member(&server, "bob").await;
    let (invites, store) = invites_in_memory(&server, "alice").await;
    let mut invitation = invite(&invites, &ask()).await;
    invitation.committing(0).unwrap();
    drop(bob);
    server.kill().await;
    let error = invitation.spend().await.unwrap_err();
    assert!(matches!(error, InviteError::Keypool(Error::Transport(_))), "{error:?}");
    assert_eq!(store.invitations().unwrap().len(), 1);

    let server = start(&database).await;
    let back = super::invites(server.client("alice", "phone").await, store.clone());
    let nothing_to_ask = |_| -> std::future::Ready<_> { unreachable!("it was accepted") };
    assert_eq!(back.recover(nothing_to_ask).await.unwrap().spent, 1);
    assert_eq!(counts(&server.client("bob", "phone").await).await, (2, 0, 1));
    assert_eq!(store.invitations().unwrap(), []);
}
