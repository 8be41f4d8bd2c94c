//! Good packages, and what is kept of them.

use super::*;

#[test]
fn a_forged_package_of_every_servable_suite() {
    let suites: Vec<u16> = servable_cipher_suites().iter().map(|suite| suite.0).collect();
    let mut known = [&RUST_CRYPTO[..], &LIBCRUX, &FORGED_ONLY].concat();
    known.sort_unstable();
    assert_eq!(suites, known);
    for suite in suites {
        let forge = good(suite);
        let bytes = forge.build();
        let valid = judge(&bytes).unwrap_or_else(|error| panic!("{suite:#06x}: {error:?}"));
        assert_eq!(valid.bytes, bytes);
        assert_eq!(valid.cipher_suite, CipherSuite(suite));
        assert_eq!(valid.not_after, at(NOW - 3600 + 30 * DAY));
        assert!(!valid.last_resort);
        assert_eq!(valid.init_key_digest, short_digest(&forge.init_key));
        assert_eq!(valid.signature_key_digest, short_digest(&forge.signature_key));
        assert_eq!(valid.credential_digest, short_digest(b"\x00\x01\x05alice"));
        assert_eq!(valid.capabilities, [0x2_0001]);
    }
}

#[test]
fn what_openmls_accepts_too() {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    for suite in RUST_CRYPTO {
        agrees(&RustCrypto::default(), &good(suite).valid_around(now));
    }
    for suite in LIBCRUX {
        agrees(&Libcrux::new().unwrap(), &good(suite).valid_around(now));
    }
    // openmls 0.9.2 refuses GREASE extensions, listed or not: it decodes the type in the list
    // and the type of the extension to values that differ.
    let grease = good(1).valid_around(now).with(grease_in_capabilities);
    agrees(&RustCrypto::default(), &grease);
}

fn agrees(provider: &impl OpenMlsProvider, forge: &Forge) {
    let bytes = forge.build();
    let ours = validate(&bytes, &client("alice", "phone"), &every_suite(), SystemClock.now());
    let theirs = KeyPackageIn::tls_deserialize_exact_bytes(&bytes)
        .unwrap()
        .validate(provider.crypto(), ProtocolVersion::Mls10)
        .unwrap();
    let key_package_ref = theirs.hash_ref(provider.crypto()).unwrap();
    assert_eq!(ours.unwrap().key_package_ref.0, key_package_ref.as_slice());
}

#[test]
fn what_openmls_makes_and_it_can_be_joined_with() {
    for suite in RUST_CRYPTO {
        join(|user| Member::new(user, "phone", suite));
    }
    for suite in LIBCRUX {
        join(|user| Member::on(Libcrux::new().unwrap(), user, "phone", suite));
    }
}

fn join<P: OpenMlsProvider>(member: impl Fn(&str) -> Member<P>) {
    let (mut alice, mut bob) = (member("alice"), member("bob"));
    for last_resort in [false, true] {
        let uploaded = bob.key_package(last_resort, Lifetime::default());
        let valid = validate(&uploaded, &bob.client, &every_suite(), SystemClock.now());
        let valid = valid.unwrap();
        assert_eq!(valid.last_resort, last_resort);
        assert!(valid.capabilities.contains(&i32::from(LAST_RESORT)));

        let group = alice.create_group();
        let invitation = alice.add(&[valid.bytes]);
        alice.merge_commit();
        assert_eq!(bob.join(&invitation.welcome), group);
        assert_eq!(bob.receive(&alice.send(b"hi Bob")), Some(b"hi Bob".to_vec()));
        assert_eq!(alice.receive(&bob.send(b"hi Alice")), Some(b"hi Alice".to_vec()));
    }
}

#[test]
fn the_default_lifetime_of_openmls_under_the_default_policy() {
    let alice = Member::new("alice", "phone", 1);
    let bytes = alice.key_package(false, Lifetime::default());
    validate(&bytes, &alice.client, &UploadPolicy::default(), SystemClock.now()).unwrap();
}

#[test]
fn an_mls_message_and_keeps_what_it_wraps() {
    for suite in [1, 2, 5] {
        let bare = good(suite).build();
        let valid = judge(&mls_message(1, 5, &bare)).unwrap();
        assert_eq!(valid, judge(&bare).unwrap());
        assert_eq!(valid.bytes, bare);
    }
}

#[test]
fn last_resort_packages_in_both_encodings() {
    let component = app_data_dictionary(&[(1, b"x"), (4, b""), (0x8000, b"y")]);
    assert!(accepted(&good(1).extension(LAST_RESORT, b"")).last_resort);
    assert!(accepted(&good(1).extension(APP_DATA_DICTIONARY, &component)).last_resort);
    let other = app_data_dictionary(&[(1, b"x"), (5, b"")]);
    assert!(!accepted(&good(1).extension(APP_DATA_DICTIONARY, &other)).last_resort);
    // In the leaf node, the component means nothing.
    assert!(!accepted(&good(1).leaf_extension(APP_DATA_DICTIONARY, &component)).last_resort);
}

fn grease_in_capabilities(forge: &mut Forge) {
    let lists = &mut forge.capabilities;
    lists.versions.insert(0, GREASE);
    lists.cipher_suites.insert(0, GREASE);
    lists.extensions.insert(0, GREASE);
    lists.proposals.insert(0, GREASE);
    lists.credentials.insert(0, GREASE);
}

#[test]
fn grease_everywhere_it_may_stand() {
    let grease = i32::from(GREASE);
    let forge = good(1).with(grease_in_capabilities).with(|it| {
        it.extensions.push((GREASE, b"anything".to_vec()));
        it.leaf_extensions.push((GREASE, Vec::new()));
    });
    let valid = accepted(&forge);
    assert_eq!(valid.capabilities, [grease, grease + 0x1_0000, 0x2_0001, grease + 0x2_0000]);
}

#[test]
fn default_extensions_of_a_leaf_node_unlisted() {
    accepted(&good(1).with(|it| it.leaf_extensions.push((1, b"\x03app".to_vec()))));
}

#[test]
fn lifetimes_up_to_their_bounds() {
    for (not_before, not_after) in
        [(NOW + 300, NOW + 301), (NOW, NOW + 90 * DAY), (NOW + 1 - 90 * DAY, NOW + 1)]
    {
        accepted(&good(1).lifetime(not_before, not_after));
    }
}

#[test]
fn a_package_of_exactly_the_size_limit() {
    let padding = 20 * 1024 - good(1).extension(GREASE, &[0; 0x4000]).build().len();
    let bytes = good(1).extension(GREASE, &vec![0; 0x4000 + padding]).build();
    assert_eq!(bytes.len(), 20 * 1024);
    judge(&bytes).unwrap();
}

#[test]
fn the_identity_that_the_template_asks_for() {
    let policy = UploadPolicy {
        credential_identity: IdentityTemplate::parse("{user_id}/{client_id}").unwrap(),
        ..UploadPolicy::default()
    };
    let caller = client("alice", "phone");
    let bytes = Forge::new(1, "alice/phone").build();
    validate(&bytes, &caller, &policy, at(NOW)).unwrap();
    let bytes = Forge::new(1, "alice/tablet").build();
    let rejection = validate(&bytes, &caller, &policy, at(NOW)).unwrap_err();
    assert_eq!(rejection.reason, CredentialMismatch);
}
