//! An invitation on its way. What the server sees is the fake's;
//! that all this works with keypool itself is tested where keypool is.

mod journal;

use std::{future::ready, sync::Arc, time::Duration};

use keypool_client::{
    AddError, Bytes, CommitOutcome, Error, InvitationRecord, InvitationState, InviteError, Invites,
    MemoryMetadataStore, MetadataError, MetadataStore, MissingReason, PackageRecord, Reserve, Uuid,
    basic_credential_names_user, v1,
};
use openmls::prelude::*;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use v1::UnavailableReason;

use crate::{
    device::{Device, held, without},
    fake::{Asked, Behaviour, Fake},
};

/// Alice's device, and a fake that has a package of each user but those whose name says otherwise.
struct Scene {
    fake: Fake,
    alice: Device,
    store: Arc<MemoryMetadataStore>,
    invites: Invites,
}

fn stocked(request: &v1::ReserveKeyPackagesRequest) -> Vec<v1::ReserveResult> {
    let package = |user: &str| match user {
        "empty" => without(user, UnavailableReason::PoolExhausted),
        "old" => without(user, UnavailableReason::NoCompatibleKeyPackage),
        "drawn" => without(user, UnavailableReason::Quota),
        _ => {
            let device = Device::new(user);
            let id = format!("{user} for {}", request.request_id);
            held(user, device.reservation(&id, &device.package()))
        }
    };
    request.targets.iter().map(|target| package(&target.user_id)).collect()
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::serving().await;
        fake.reserve_with(stocked);
        let store = Arc::new(MemoryMetadataStore::new());
        let client = fake.builder().retries(0).connect().await.unwrap();
        let invites = Invites::new(client, store.clone(), basic_credential_names_user);
        Self { fake, alice: Device::new("alice"), store, invites }
    }

    fn crypto(&self) -> &impl OpenMlsCrypto {
        self.alice.provider.crypto()
    }

    fn ask(&self) -> Reserve {
        Reserve::for_group(&self.alice.group())
    }

    /// The states in the journal.
    fn states(&self) -> Vec<InvitationState> {
        states(&*self.store)
    }

    async fn until_settled(&self) {
        while !self.states().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What was spent and what was released, in calls.
    fn settled(&self) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
        let (mut spent, mut released) = (Vec::new(), Vec::new());
        for asked in self.fake.asked() {
            match asked {
                Asked::Spend(message) => spent.push(message.reservation_ids),
                Asked::Release(message) => released.push(message.reservation_ids),
                _ => {}
            }
        }
        (spent, released)
    }

    /// Recovers without a Commit to ask about.
    async fn recover(&self) -> keypool_client::Recovery {
        let nothing_to_ask = |_| -> std::future::Ready<CommitOutcome> { unreachable!() };
        self.invites.recover(nothing_to_ask).await.unwrap()
    }
}

fn states(store: &impl MetadataStore) -> Vec<InvitationState> {
    store.invitations().unwrap().iter().map(|record| record.state).collect()
}

fn refusal(code: tonic::Code, reason: &str) -> Status {
    let details =
        ErrorDetails::with_error_info(reason, "keypool.v1", std::collections::HashMap::new());
    Status::with_error_details(code, "no", details)
}

#[tokio::test]
async fn those_who_are_invited_join() {
    let scene = Scene::new().await;
    let bob = Device::new("bob");
    let answer = held("bob", bob.reservation("bob's", &bob.package()));
    scene.fake.reserve_with(move |_| vec![answer.clone()]);
    let mut group = scene.alice.group();
    let ask = Reserve::for_group(&group).target("bob");
    let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    let messages =
        invitation.add_to(&mut group, &scene.alice.provider, &scene.alice.signer).unwrap();
    assert_eq!(scene.states(), [InvitationState::CommitPending { epoch: 0 }]);
    group.merge_pending_commit(&scene.alice.provider).unwrap();
    let settlement = invitation.spend().await.unwrap();
    assert_eq!((settlement.spent, settlement.lost.len()), (1, 0));
    assert_eq!(bob.join(&messages.welcome).epoch(), group.epoch());
    assert_eq!(scene.states(), []);
    assert_eq!(scene.settled(), (vec![vec!["bob's".into()]], vec![]));
}

#[tokio::test]
async fn each_step_is_in_the_journal_before_the_server_hears_of_it() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob");
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    scene.fake.refuse_when({
        let (seen, store) = (seen.clone(), scene.store.clone());
        move |asked| {
            let records = store.invitations().unwrap();
            assert_eq!(records.len(), 1);
            if let Asked::Reserve(message) = asked {
                assert_eq!(records[0].invitation_id.to_string(), message.request_id);
                assert_eq!(records[0].group_id, message.group_id);
                assert!(!records[0].request.is_empty());
            } else {
                assert!(records[0].request.is_empty());
                assert!(!records[0].reservations[0].encryption_key.is_empty());
            }
            seen.lock().unwrap().push(records[0].state);
            None
        }
    });
    let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    assert_eq!(scene.states(), [InvitationState::Reserved]);
    invitation.committing(7).unwrap();
    assert_eq!(scene.states(), [InvitationState::CommitPending { epoch: 7 }]);
    invitation.spend().await.unwrap();
    let ask = scene.ask().target("bob");
    scene.invites.reserve(scene.crypto(), &ask).await.unwrap().release().await.unwrap();
    let expected = [
        InvitationState::Reserving,
        InvitationState::Spending,
        InvitationState::Reserving,
        InvitationState::Releasing,
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(scene.states(), []);
}

#[tokio::test]
async fn each_missing_client_has_its_reason() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob").target("empty").target("old").target("drawn");
    let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    assert_eq!(invitation.invitees()[0].user_id, "bob");
    let missing = invitation.missing();
    assert_eq!(missing.iter().map(|it| &it.user_id).collect::<Vec<_>>(), ["empty", "old", "drawn"]);
    assert!(matches!(missing[0].reason, MissingReason::PoolExhausted));
    assert!(matches!(missing[1].reason, MissingReason::NoCompatibleKeyPackage));
    assert!(matches!(missing[2].reason, MissingReason::Quota));
    invitation.release().await.unwrap();
}

#[tokio::test]
async fn the_only_client_that_gives_nothing_is_missing_like_any_other() {
    let scene = Scene::new().await;
    for (reason, expected) in [
        ("POOL_EXHAUSTED", MissingReason::PoolExhausted),
        ("NO_COMPATIBLE_KEY_PACKAGE", MissingReason::NoCompatibleKeyPackage),
        ("QUOTA", MissingReason::Quota),
    ] {
        scene.fake.behave(Behaviour::Fail(refusal(tonic::Code::FailedPrecondition, reason)));
        let ask = scene.ask().target_clients("bob", ["phone"]);
        let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
        assert!(invitation.invitees().is_empty());
        let missing = &invitation.missing()[0];
        assert_eq!((missing.user_id.as_str(), missing.client_id.as_str()), ("bob", "phone"));
        assert_eq!(missing.reason.to_string(), expected.to_string());
        assert_eq!(invitation.expires_at(), None);
        assert_eq!(scene.states(), []);
        assert_eq!(invitation.spend().await.unwrap().spent, 0);
    }
}

#[tokio::test]
async fn all_or_nothing_gives_nothing_when_a_package_is_refused() {
    let scene = Scene::new().await;
    scene.fake.reserve_with(|request| {
        let mallory = Device::new("mallory");
        let mut results = stocked(request);
        results[1] = held("carol", mallory.reservation("mallory's", &mallory.package()));
        results
    });
    let ask = scene.ask().target("bob").target("carol").all_or_nothing();
    let error = scene.invites.reserve(scene.crypto(), &ask).await.unwrap_err();
    let InviteError::Incomplete(missing) = error else { panic!("{error:?}") };
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].user_id, "carol");
    scene.until_settled().await;
    let (spent, mut released) = scene.settled();
    released.sort();
    assert_eq!((spent.len(), released.len()), (0, 2));
    assert!(released[0][0].starts_with("bob"));
    assert_eq!(released[1], ["mallory's"]);
}

#[tokio::test]
async fn a_whole_group_is_reserved_in_one_call_and_a_larger_one_in_more() {
    let scene = Scene::new().await;
    scene.fake.reserve_with(|request| {
        let results = request.targets.iter();
        results.map(|it| without(&it.user_id, UnavailableReason::PoolExhausted)).collect()
    });
    for (users, calls) in [(1, vec![1]), (100, vec![100]), (101, vec![100, 1]), (200, vec![100; 2])]
    {
        let before = scene.fake.asked().len();
        let ask = (0..users).fold(scene.ask(), |ask, number| ask.target(format!("user {number}")));
        let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
        assert_eq!(invitation.missing().len(), users);
        let mut ids = std::collections::HashSet::new();
        let asked: Vec<_> = scene.fake.asked()[before..]
            .iter()
            .map(|asked| match asked {
                Asked::Reserve(message) => {
                    assert!(ids.insert(message.request_id.clone()));
                    message.targets.len()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked, calls);
    }
}

#[tokio::test]
async fn who_is_in_the_group_already_is_not_added_again() {
    let scene = Scene::new().await;
    let bob = Device::new("bob");
    let packages = [bob.package(), bob.package()];
    let mut group = scene.alice.group();
    group.add_members(&scene.alice.provider, &scene.alice.signer, &packages[..1]).unwrap();
    group.merge_pending_commit(&scene.alice.provider).unwrap();
    let answer = held("bob", bob.reservation("bob's", &packages[1]));
    scene.fake.reserve_with(move |_| vec![answer.clone()]);
    let ask = Reserve::for_group(&group).target("bob");
    let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    assert!(matches!(invitation.missing()[0].reason, MissingReason::AlreadyMember));
    scene.until_settled().await;
    assert_eq!(scene.settled(), (vec![], vec![vec!["bob's".into()]]));
}

#[tokio::test]
async fn a_group_that_is_not_the_invitations_and_an_empty_invitation_make_no_commit() {
    let scene = Scene::new().await;
    let mut group = scene.alice.group();
    let (provider, signer) = (&scene.alice.provider, &scene.alice.signer);
    let ask = scene.ask().target("bob");
    let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    let error = invitation.add_to(&mut group, provider, signer).unwrap_err();
    assert!(matches!(error, AddError::OtherGroup), "{error:?}");
    assert_eq!(scene.states(), [InvitationState::Reserved]);
    invitation.release().await.unwrap();

    let ask = Reserve::for_group(&group).target("empty");
    let mut nobody = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    let error = nobody.add_to(&mut group, provider, signer).unwrap_err();
    assert!(matches!(error, AddError::Mls(_)), "{error:?}");
}

#[tokio::test]
async fn when_openmls_makes_no_commit_the_packages_are_still_to_be_released() {
    let scene = Scene::new().await;
    let mut group = scene.alice.group();
    let (provider, signer) = (&scene.alice.provider, &scene.alice.signer);
    let ask = Reserve::for_group(&group).target("bob");
    let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    // Another commit is pending.
    group.self_update(provider, signer, LeafNodeParameters::default()).unwrap();
    let error = invitation.add_to(&mut group, provider, signer).unwrap_err();
    assert!(matches!(error, AddError::Mls(_)), "{error:?}");
    assert_eq!(scene.states(), [InvitationState::Reserved]);
    drop(invitation);
    scene.until_settled().await;
    assert_eq!(scene.settled().1.len(), 1);
}

#[tokio::test]
async fn a_dropped_invitation_is_released_in_the_background() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob").target("carol");
    drop(scene.invites.reserve(scene.crypto(), &ask).await.unwrap());
    scene.until_settled().await;
    let (spent, released) = scene.settled();
    assert_eq!((spent.len(), released.len(), released[0].len()), (0, 1, 2));
}

#[test]
fn without_a_runtime_a_dropped_invitation_is_left_to_the_journal() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let serving = runtime();
    let scene = serving.block_on(Scene::new());
    let reserved = async {
        let ask = scene.ask().target("bob");
        scene.invites.reserve(scene.crypto(), &ask).await.unwrap()
    };
    let invitation = serving.block_on(reserved);
    drop(invitation);
    assert_eq!(scene.states(), [InvitationState::Reserved]);
    assert_eq!(serving.block_on(scene.recover()).released, 1);
    assert_eq!(scene.states(), []);
}

#[tokio::test]
async fn a_suite_that_the_provider_does_not_know_is_refused_before_the_server_is_asked() {
    let scene = Scene::new().await;
    for suite in [0xf0f0_u16, 0x004d] {
        let ask = Reserve::new(&b"group"[..], suite).target("bob");
        let error = scene.invites.reserve(scene.crypto(), &ask).await.unwrap_err();
        assert!(matches!(error, InviteError::UnsupportedCipherSuite(_)), "{error:?}");
    }
    assert_eq!(scene.fake.asked(), []);
}
