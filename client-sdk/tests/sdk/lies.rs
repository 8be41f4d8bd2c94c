//! A server that lies is found out, and the lie has a name.

use std::{sync::Arc, time::Duration};

use keypool_client::{
    Invites, MemoryMetadataStore, MetadataStore as _, MissingReason, Refusal, Reserve,
    basic_credential_names_user,
    v1::{Reservation, ReserveResult},
};
use openmls::prelude::{
    tls_codec::{DeserializeBytes as _, Serialize as _, VLBytes},
    *,
};
use openmls_traits::signatures::Signer as _;

use crate::{
    device::{Device, SUITE, held},
    fake::{Asked, Fake},
};

/// What is answered for Bob beside Carol's honest package is refused. The reservation that must
/// not be used is released, and Carol's is not.
async fn refused(
    answer: impl Fn(&Device) -> ReserveResult + Send + 'static,
    expected: fn(&MissingReason) -> bool,
) {
    let group = Device::new("alice").group();
    let ask = Reserve::for_group(&group).target("bob").target("carol");
    let (bob, carol) = (Device::new("bob"), Device::new("carol"));
    let crypto = Device::new("alice").provider;
    let honest = carol.reservation("carol's", &carol.package());
    let fake = Fake::serving().await;
    fake.reserve_with(move |_| vec![answer(&bob), held("carol", honest.clone())]);
    let store = Arc::new(MemoryMetadataStore::new());
    let client = fake.builder().connect().await.unwrap();
    let invites = Invites::new(client, store.clone(), basic_credential_names_user);
    let invitation = invites.reserve(crypto.crypto(), &ask).await.unwrap();
    let invited: Vec<_> = invitation.invitees().iter().map(|it| it.user_id.as_str()).collect();
    assert_eq!(invited, ["carol"]);
    assert_eq!(invitation.missing().len(), 1, "{:?}", invitation.missing());
    assert!(expected(&invitation.missing()[0].reason), "{:?}", invitation.missing());
    while store.invitations().unwrap().len() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let released: Vec<_> = fake.asked().into_iter().skip(1).collect();
    assert_eq!(
        released,
        [Asked::Release(keypool_client::v1::ReleaseReservationsRequest {
            reservation_ids: vec!["bob's".into()]
        })]
    );
    invitation.release().await.unwrap();
    assert_eq!(store.invitations().unwrap(), []);
}

/// Bob's good package, changed.
fn changed(
    change: impl Fn(&mut Reservation) + Send + 'static,
) -> impl Fn(&Device) -> ReserveResult + Send + 'static {
    move |bob| {
        let mut reservation = bob.reservation("bob's", &bob.package());
        change(&mut reservation);
        held("bob", reservation)
    }
}

/// A package of Bob's that is made otherwise.
fn made(
    make: impl Fn(KeyPackageBuilder) -> KeyPackageBuilder + Send + 'static,
) -> impl Fn(&Device) -> ReserveResult + Send + 'static {
    move |bob| held("bob", bob.reservation("bob's", &bob.package_by(&make)))
}

fn bytes_of(reservation: &mut Reservation, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = reservation.key_package.to_vec();
    change(&mut bytes);
    reservation.key_package = bytes.into();
}

macro_rules! assert_refused {
    ($answer:expr, $refusal:pat) => {
        refused($answer, |it| matches!(it, MissingReason::Refused($refusal))).await
    };
}

#[tokio::test]
async fn what_is_no_key_package_is_malformed() {
    for change in [
        (|bytes: &mut Vec<u8>| bytes.clear()) as fn(&mut Vec<u8>),
        |bytes| bytes.truncate(3),
        |bytes| bytes.truncate(100),
        |bytes| bytes.push(0),
    ] {
        let answer = changed(move |it| bytes_of(it, change));
        assert_refused!(answer, Refusal::Malformed);
    }
}

#[tokio::test]
async fn no_bytes_are_taken_or_make_it_panic() {
    let bob = Device::new("bob");
    let honest = bob.reservation("honest", &bob.package());
    let length = honest.key_package.len();
    let fake = Fake::serving().await;
    fake.reserve_with(move |request| {
        let results = request.targets.iter().map(|target| {
            let (kind, place) = target.user_id.split_once(' ').unwrap();
            let place: usize = place.parse().unwrap();
            let mut reservation = honest.clone();
            bytes_of(&mut reservation, |bytes| match kind {
                "cut" => bytes.truncate(place),
                _ => bytes[place] ^= 0xff,
            });
            held(&target.user_id, reservation)
        });
        results.collect()
    });
    let client = fake.builder().connect().await.unwrap();
    let anyone = |_: &keypool_client::Presented<'_>| Ok(());
    let invites = Invites::new(client, MemoryMetadataStore::new(), anyone);
    let alice = Device::new("alice");
    let ask = (0..length).fold(Reserve::for_group(&alice.group()), |ask, place| {
        ask.target(format!("cut {place}")).target(format!("flip {place}"))
    });
    let invitation = invites.reserve(alice.provider.crypto(), &ask).await.unwrap();
    assert!(invitation.invitees().is_empty());
    assert_eq!(invitation.missing().len(), 2 * length);
    let refused = |it: &keypool_client::Missing| matches!(it.reason, MissingReason::Refused(_));
    assert!(invitation.missing().iter().all(refused));
}

#[tokio::test]
async fn another_version_is_refused() {
    let answer = changed(|it| bytes_of(it, |bytes| bytes[1] = 2));
    assert_refused!(answer, Refusal::WrongVersion(2));
}

#[tokio::test]
async fn a_package_of_another_suite_is_refused() {
    let p256 = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
    let answer = move |_: &Device| {
        let bob = Device::of(p256, "bob");
        held("bob", bob.reservation("bob's", &bob.package()))
    };
    assert_refused!(answer, Refusal::WrongCipherSuite(2));
}

#[tokio::test]
async fn a_changed_package_does_not_verify() {
    for from_the_end in [1, 70] {
        let answer = changed(move |it| {
            bytes_of(it, |bytes| {
                let place = bytes.len() - from_the_end;
                bytes[place] ^= 1;
            });
        });
        assert_refused!(answer, Refusal::InvalidSignature);
    }
}

#[tokio::test]
async fn a_stale_package_and_one_that_lives_too_long_are_refused() {
    for lifetime in [
        Lifetime::init(1_000_000_000, 1_000_600_000),
        Lifetime::init(3_000_000_000, 3_000_600_000),
        Lifetime::init(1_000_000_000, 4_000_000_000),
    ] {
        let answer = made(move |it| it.key_package_lifetime(lifetime));
        assert_refused!(answer, Refusal::Lifetime);
    }
}

#[tokio::test]
async fn a_package_that_its_ref_does_not_name_is_refused() {
    let other = changed(|it| it.key_package_ref = vec![7; 32].into());
    assert_refused!(other, Refusal::RefMismatch);
    let swapped = |bob: &Device| {
        let mut reservation = bob.reservation("bob's", &bob.package());
        reservation.key_package = bob.reservation("", &bob.package()).key_package;
        held("bob", reservation)
    };
    assert_refused!(swapped, Refusal::RefMismatch);
}

#[tokio::test]
async fn the_last_resort_mark_has_to_agree() {
    let claimed = changed(|it| it.last_resort = true);
    assert_refused!(claimed, Refusal::LastResortMismatch);
    let hidden = |bob: &Device| {
        let package = bob.package_by(KeyPackageBuilder::mark_as_last_resort);
        let mut reservation = bob.reservation("bob's", &package);
        reservation.last_resort = false;
        held("bob", reservation)
    };
    assert_refused!(hidden, Refusal::LastResortMismatch);
}

#[tokio::test]
async fn someone_elses_package_is_refused() {
    let mallorys = |_: &Device| {
        let mallory = Device::new("mallory");
        held("bob", mallory.reservation("bob's", &mallory.package()))
    };
    assert_refused!(mallorys, Refusal::Credential(_));
}

#[tokio::test]
async fn capabilities_that_the_leaf_or_the_group_needs_must_be_there() {
    let without_suite = |bob: &Device| {
        let others = vec![Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519];
        let others = Capabilities::builder().ciphersuites(others).build();
        let package = bob.package_by(|it| it.leaf_node_capabilities(others));
        held("bob", bob.reservation("bob's", &package))
    };
    assert_refused!(without_suite, Refusal::Invalid(_));

    let required = Extension::RequiredCapabilities(RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(0xf001)],
        &[],
        &[],
    ));
    let alice = Device::new("alice");
    let group = alice.group_with(|builder| {
        let can = Capabilities::builder()
            .ciphersuites(vec![SUITE])
            .extensions(vec![ExtensionType::Unknown(0xf001)])
            .build();
        let extensions = Extensions::single(required).unwrap();
        builder.capabilities(can).with_group_context_extensions(extensions)
    });
    let able = || {
        Capabilities::builder()
            .ciphersuites(vec![SUITE])
            .extensions(vec![ExtensionType::Unknown(0xf001)])
            .build()
    };
    let ask = Reserve::for_group(&group);
    let asked = ask.message().required_capabilities.clone().unwrap();
    assert_eq!(asked.extension_types, [0xf001], "the server is told");
    // Carol's client is able here, Bob's is not.
    let (bob, carol) = (Device::new("bob"), Device::new("carol"));
    let carols = carol.package_by(|it| it.leaf_node_capabilities(able()));
    let answers = [
        held("bob", bob.reservation("bob's", &bob.package())),
        held("carol", carol.reservation("carol's", &carols)),
    ];
    let fake = Fake::serving().await;
    fake.reserve_with(move |_| answers.to_vec());
    let client = fake.builder().connect().await.unwrap();
    let invites = Invites::new(client, MemoryMetadataStore::new(), basic_credential_names_user);
    let ask = ask.target("bob").target("carol");
    let invitation = invites.reserve(alice.provider.crypto(), &ask).await.unwrap();
    assert_eq!(invitation.invitees()[0].user_id, "carol");
    let reason = &invitation.missing()[0].reason;
    assert!(matches!(reason, MissingReason::Refused(Refusal::MissingCapabilities)), "{reason:?}");
}

#[tokio::test]
async fn a_package_for_someone_who_was_not_asked_for_is_refused() {
    let stranger = |bob: &Device| held("dave", bob.reservation("bob's", &bob.package()));
    let fake = Fake::serving().await;
    let bob = Device::new("bob");
    fake.reserve_with(move |_| vec![stranger(&bob)]);
    let client = fake.builder().connect().await.unwrap();
    let invites = Invites::new(client, MemoryMetadataStore::new(), basic_credential_names_user);
    let alice = Device::new("alice");
    let ask = Reserve::for_group(&alice.group()).target("bob").target_clients("eve", ["pc", "tv"]);
    let invitation = invites.reserve(alice.provider.crypto(), &ask).await.unwrap();
    let why: Vec<_> = invitation
        .missing()
        .iter()
        .map(|it| {
            let reason = match it.reason {
                MissingReason::Refused(Refusal::NotAskedFor) => "not asked for",
                MissingReason::Unanswered => "unanswered",
                _ => "another",
            };
            (it.user_id.as_str(), it.client_id.as_str(), reason)
        })
        .collect();
    let unanswered = "unanswered";
    assert_eq!(
        why,
        [
            ("dave", "phone", "not asked for"),
            ("bob", "", unanswered),
            ("eve", "pc", unanswered),
            ("eve", "tv", unanswered)
        ]
    );
    assert!(invitation.invitees().is_empty());
}

#[tokio::test]
async fn a_key_can_stand_in_an_invitation_once() {
    let fake = Fake::serving().await;
    let (bob, alice) = (Device::new("bob"), Device::new("alice"));
    let first = bob.package();
    let answers = [
        held("bob", bob.reservation("first", &first)),
        keypool_client::v1::ReserveResult {
            client_id: "laptop".into(),
            ..held("bob", bob.reservation("again", &first))
        },
        keypool_client::v1::ReserveResult {
            client_id: "tablet".into(), // another package with the same signature key
            ..held("bob", bob.reservation("same key", &bob.package()))
        },
    ];
    fake.reserve_with(move |_| answers.to_vec());
    let client = fake.builder().connect().await.unwrap();
    let invites = Invites::new(client, MemoryMetadataStore::new(), basic_credential_names_user);
    let ask = Reserve::for_group(&alice.group()).target("bob");
    let invitation = invites.reserve(alice.provider.crypto(), &ask).await.unwrap();
    assert_eq!(invitation.invitees().len(), 1);
    assert_eq!(invitation.missing().len(), 2);
    for missing in invitation.missing() {
        let duplicate = matches!(missing.reason, MissingReason::Refused(Refusal::Duplicate));
        assert!(duplicate, "{missing:?}");
    }
}

#[tokio::test]
async fn the_callers_check_sees_what_is_presented_and_decides() {
    let fake = Fake::serving().await;
    let (bob, alice) = (Device::new("bob"), Device::new("alice"));
    let package = bob.package();
    let answer = held("bob", bob.reservation("bob's", &package));
    fake.reserve_with(move |_| vec![answer.clone()]);
    let client = fake.builder().connect().await.unwrap();
    let known = bob.credential.clone();
    let check = move |it: &keypool_client::Presented<'_>| {
        assert_eq!((it.user_id, it.client_id), ("bob", "phone"));
        assert_eq!((it.credential, it.signature_key), (&known.credential, &known.signature_key));
        Err("not verified in person".into())
    };
    let invites = Invites::new(client, MemoryMetadataStore::new(), check);
    let ask = Reserve::for_group(&alice.group()).target("bob");
    let invitation = invites.reserve(alice.provider.crypto(), &ask).await.unwrap();
    let MissingReason::Refused(refusal) = &invitation.missing()[0].reason else { unreachable!() };
    let source = std::error::Error::source(refusal).unwrap();
    assert_eq!(source.to_string(), "not verified in person");
}

/// Signed by its owner, who may be the one that wants a group's Commit to fail.
fn with_init_key(owner: &Device, init_key: Vec<u8>) -> Reservation {
    let package = owner.package();
    let mut reservation = owner.reservation("bob's", &package);
    let vector = |bytes: &[u8]| VLBytes::new(bytes.to_vec()).tls_serialize_detached().unwrap();
    bytes_of(&mut reservation, |bytes| {
        // version, cipher_suite, init_key<V>, leaf_node, extensions<V>, signature<V>
        let old_key = 4..4 + vector(package.hpke_init_key().as_slice()).len();
        bytes.truncate(bytes.len() - vector(&[0; 64]).len());
        bytes.splice(old_key, vector(&init_key));
        let signed = [vector(b"MLS 1.0 KeyPackageTBS"), vector(bytes)].concat();
        bytes.extend(vector(&owner.signer.sign(&signed).unwrap()));
    });
    let parsed = KeyPackageIn::tls_deserialize_exact_bytes(&reservation.key_package).unwrap();
    let valid = parsed.validate(owner.provider.crypto(), ProtocolVersion::Mls10).unwrap();
    reservation.key_package_ref =
        valid.hash_ref(owner.provider.crypto()).unwrap().as_slice().to_vec().into();
    reservation
}

#[tokio::test]
async fn a_key_that_nothing_can_be_encrypted_to_is_refused_before_it_spoils_the_commit() {
    let short = |bob: &Device| held("bob", with_init_key(bob, vec![7; 31]));
    assert_refused!(short, Refusal::Invalid(_));
    let zero = |bob: &Device| held("bob", with_init_key(bob, vec![0; 32]));
    assert_refused!(zero, Refusal::Invalid(_));
}
