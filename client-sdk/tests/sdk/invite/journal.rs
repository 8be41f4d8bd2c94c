//! What the journal makes of an invitation that did not go as it was begun.

use super::*;

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
