//! An invitation on its way, and what the journal makes of it. What the server sees is the fake's;
//! that all this works with keypool itself is tested where keypool is.

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
async fn an_invitation_with_a_commit_is_not_released_when_it_is_dropped_but_asked_about() {
    let (accepted, rejected, unknown) =
        (CommitOutcome::Accepted, CommitOutcome::Rejected, CommitOutcome::Unknown);
    for outcome in [accepted, rejected, unknown] {
        let scene = Scene::new().await;
        let ask = scene.ask().target("bob").target("carol");
        let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
        invitation.committing(3).unwrap();
        // Nobody asks about it while it is here.
        assert_eq!(scene.recover().await.unknown, 0);
        drop(invitation);
        let recovery = scene.invites.recover(|commit| {
            assert_eq!((commit.epoch, &commit.group_id), (3, &ask.message().group_id));
            ready(outcome)
        });
        let recovery = recovery.await.unwrap();
        let (spent, released) = scene.settled();
        assert_eq!(
            (recovery.spent, spent.len()),
            if outcome == accepted { (2, 1) } else { (0, 0) }
        );
        let expected = if outcome == rejected { (2, 1) } else { (0, 0) };
        assert_eq!((recovery.released, released.len()), expected);
        assert_eq!(recovery.unknown, usize::from(outcome == unknown));
        assert_eq!(scene.states().len(), recovery.unknown, "what is unknown is kept");
    }
}

#[tokio::test]
async fn a_spend_that_fails_is_done_later_without_asking() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob");
    let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    scene.fake.behave_first([Behaviour::Fail(Status::unavailable("down"))]);
    let error = invitation.spend().await.unwrap_err();
    assert!(matches!(error, InviteError::Keypool(Error::Unavailable(_))), "{error:?}");
    assert_eq!(scene.states(), [InvitationState::Spending]);
    assert_eq!(scene.recover().await.spent, 1);
    assert_eq!(scene.states(), []);
    assert_eq!(scene.settled().1, Vec::<Vec<String>>::new());
}

#[tokio::test]
async fn a_lost_reservation_does_not_keep_the_others_from_being_spent() {
    let scene = Scene::new().await;
    scene.fake.refuse_when(|asked| match asked {
        Asked::Spend(message) => {
            let lost = message.reservation_ids.iter().any(|id| id.starts_with("user 5 "));
            lost.then(|| refusal(tonic::Code::FailedPrecondition, "RESERVATION_LOST"))
        }
        _ => None,
    });
    let ask = (0..10).fold(scene.ask(), |ask, number| ask.target(format!("user {number}")));
    let invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
    let fifth = invitation.invitees()[5].key_package_ref.clone();
    let settlement = invitation.spend().await.unwrap();
    assert_eq!((settlement.spent, settlement.lost.len()), (9, 1));
    assert_eq!(settlement.lost[0].key_package_ref, fifth);
    assert!(matches!(settlement.lost[0].error, Error::ReservationLost(_)));
    assert_eq!(scene.states(), []);
}

#[tokio::test]
async fn when_the_answer_is_lost_the_same_request_is_repeated_and_its_packages_released() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob");
    // The server has reserved, and says something that leaves it open.
    scene.fake.behave_first([Behaviour::Fail(Status::unavailable("cut off"))]);
    let error = scene.invites.reserve(scene.crypto(), &ask).await.unwrap_err();
    assert!(matches!(error, InviteError::Keypool(Error::Unavailable(_))), "{error:?}");
    scene.until_settled().await;
    let asked = scene.fake.asked();
    let expected = Asked::Reserve(ask.message().clone());
    assert_eq!((&asked[0], &asked[1]), (&expected, &expected));
    assert_eq!(scene.settled().1, [[format!("bob for {}", ask.message().request_id)]]);
}

#[tokio::test]
async fn a_server_that_is_away_leaves_the_work_to_the_journal() {
    let scene = Scene::new().await;
    scene.fake.behave(Behaviour::Fail(Status::unavailable("down")));
    let ask = scene.ask().target("bob");
    scene.invites.reserve(scene.crypto(), &ask).await.unwrap_err();
    while scene.fake.asked().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await; // the background gives up, too
    }
    assert_eq!(scene.states(), [InvitationState::Reserving]);
    scene.fake.behave(crate::fake::SERVE);
    // It is the journal's once the background has let it go.
    while scene.recover().await.released == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(scene.states(), []);
}

#[tokio::test]
async fn what_the_server_refuses_leaves_nothing_behind() {
    let scene = Scene::new().await;
    let refused = refusal(tonic::Code::InvalidArgument, "INVALID_ARGUMENT");
    scene.fake.behave(Behaviour::Fail(refused));
    let ask = scene.ask().target("bob");
    let error = scene.invites.reserve(scene.crypto(), &ask).await.unwrap_err();
    assert!(matches!(error, InviteError::Keypool(Error::Rejected(_))), "{error:?}");
    assert_eq!(scene.states(), []);
    assert_eq!(scene.fake.asked().len(), 1);
}

#[tokio::test]
async fn a_reserve_that_is_dropped_on_its_way_is_undone() {
    let scene = Scene::new().await;
    let ask = scene.ask().target("bob");
    scene.fake.behave_first([Behaviour::Hang]);
    let reserving = scene.invites.reserve(scene.crypto(), &ask);
    let asked = async {
        while scene.fake.asked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = reserving => unreachable!("it hangs"),
        () = asked => {}
    }
    scene.until_settled().await;
    assert_eq!(scene.settled().1.len(), 1);
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

#[tokio::test]
async fn a_member_of_the_group_sees_what_became_of_a_commit() {
    let scene = Scene::new().await;
    let (provider, signer) = (&scene.alice.provider, &scene.alice.signer);
    for outcome in [CommitOutcome::Accepted, CommitOutcome::Rejected, CommitOutcome::Unknown] {
        let mut group = scene.alice.group();
        let ask = Reserve::for_group(&group).target("bob");
        let mut invitation = scene.invites.reserve(scene.crypto(), &ask).await.unwrap();
        let _ = invitation.add_to(&mut group, provider, signer).unwrap();
        match outcome {
            CommitOutcome::Accepted => group.merge_pending_commit(provider).unwrap(),
            CommitOutcome::Rejected => {
                // Another commit won.
                group.clear_pending_commit(provider.storage()).unwrap();
                group.self_update(provider, signer, LeafNodeParameters::default()).unwrap();
                group.merge_pending_commit(provider).unwrap();
            }
            CommitOutcome::Unknown => {}
        }
        drop(invitation);
        let seen = scene.invites.recover(|commit| {
            assert_eq!(commit.outcome_in(&group), outcome);
            ready(commit.outcome_in(&group))
        });
        seen.await.unwrap();
        if outcome == CommitOutcome::Unknown {
            group.clear_pending_commit(provider.storage()).unwrap();
            let cleared = scene.invites.recover(|commit| ready(commit.outcome_in(&group)));
            assert_eq!(cleared.await.unwrap().released, 1, "it will never be sent");
        }
        assert_eq!(scene.states(), []);
    }
}

/// A store whose disk is full from its nth write on, until that is mended.
struct Failing {
    store: MemoryMetadataStore,
    writes_left: std::sync::atomic::AtomicI64,
}

impl Failing {
    fn write(&self) -> Result<(), MetadataError> {
        use std::sync::atomic::Ordering::SeqCst;
        match self.writes_left.fetch_sub(1, SeqCst) {
            1.. => Ok(()),
            _ => Err(MetadataError::new("the disk is full")),
        }
    }
}

impl MetadataStore for Failing {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        self.store.packages()
    }
    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        self.store.put_packages(records)
    }
    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        self.store.remove_packages(refs)
    }
    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        self.store.invitations()
    }
    fn invitation(&self, id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        self.store.invitation(id)
    }
    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.write()?;
        self.store.put_invitation(record)
    }
    fn remove_invitation(&self, id: Uuid) -> Result<(), MetadataError> {
        self.write()?;
        self.store.remove_invitation(id)
    }
}

/// Bob's package is good, Carol's is Mallory's, and the Commit is accepted if it is sent.
#[tokio::test]
async fn wherever_the_store_fails_nothing_stays_reserved_and_nothing_used_is_released() {
    let mut failures = 0;
    for writes in 0.. {
        let scene = Scene::new().await;
        scene.fake.reserve_with(|request| {
            let mallory = Device::new("mallory");
            let mut results = stocked(request);
            results[1] = held("carol", mallory.reservation("mallory's", &mallory.package()));
            results
        });
        let store =
            Arc::new(Failing { store: MemoryMetadataStore::new(), writes_left: writes.into() });
        let client = scene.fake.builder().retries(0).connect().await.unwrap();
        let invites = Invites::new(client, store.clone(), basic_credential_names_user);
        let mut group = scene.alice.group();
        let ask = Reserve::for_group(&group).target("bob").target("carol");
        let mut sent = false;
        let invite = async {
            let mut invitation = invites.reserve(scene.crypto(), &ask).await?;
            let (provider, signer) = (&scene.alice.provider, &scene.alice.signer);
            match invitation.add_to(&mut group, provider, signer) {
                Err(AddError::Journal(error)) => return Err(error.into()),
                other => drop(other.unwrap()),
            }
            sent = true;
            invitation.spend().await.map(drop)
        };
        let invited: Result<(), InviteError> = invite.await;
        store.writes_left.store(1000, std::sync::atomic::Ordering::SeqCst);
        // The background may still be at work on what was refused.
        while !states(&*store).is_empty() {
            let outcome = if sent { CommitOutcome::Accepted } else { CommitOutcome::Rejected };
            invites.recover(|_| ready(outcome)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (spent, released) = scene.settled();
        let reserved = scene.fake.asked().iter().any(|it| matches!(it, Asked::Reserve(_)));
        let bobs = |calls: &[Vec<String>]| calls.concat().iter().any(|id| id.starts_with("bob"));
        let mallorys = |calls: &[Vec<String>]| calls.concat().contains(&"mallory's".to_owned());
        assert_eq!(bobs(&spent), sent, "after {writes} writes");
        assert_eq!(bobs(&released), reserved && !sent, "after {writes} writes");
        assert_eq!((mallorys(&spent), mallorys(&released)), (false, reserved));
        match invited {
            Ok(()) => break,
            Err(InviteError::Journal(_)) => failures += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(failures >= 5, "Reserving, Releasing, Reserved, CommitPending, Spending: {failures}");
}
