//! X.509 credentials (RFC 9420, section 5.3): CREDENTIAL_MISMATCH unless a trust anchor vouches
//! for the caller's name and key.

use std::slice;

use keypool_service::domain::key_package::{InvalidTrustAnchors, TrustAnchors};
use keypool_testing::x509::{
    Authority, ClientPublicKey,
    rcgen::{
        BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DnType,
        ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints,
        OtherNameValue, PKCS_ED25519, PKCS_ML_DSA_44, SanType,
    },
};

use super::*;

const ALICE: &str = "im:alice@example.org";
const UNKNOWN_ISSUER: &str =
    "unknown issuer: the chain leads to no trust anchor, or lacks an intermediate";
const NOT_THE_KEY: &str = "the public key of the certificate is not the signature_key";
const NOT_THE_NAME: &str =
    "no URI, DNS name or e-mail SAN of the certificate is the caller's identity";

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn email(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

fn pem(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|it| pem::encode(&pem::Pem::new("CERTIFICATE", &it[..]))).collect()
}

fn anchors(authorities: &[&Authority]) -> TrustAnchors {
    let mut anchors = TrustAnchors::default();
    for authority in authorities {
        anchors.add_pem(pem(&[authority.certificate()]).as_bytes()).unwrap();
    }
    anchors
}

/// What the one anchor makes of a package of the caller [`ALICE`].
fn judge_by(anchor: &Authority, bytes: &[u8]) -> Result<ValidatedKeyPackage, Rejection> {
    let policy = UploadPolicy {
        trust_anchors: anchors(&[anchor]),
        max_key_package_bytes: 32 * 1024, // ML-DSA-87 takes 22 KiB
        ..every_suite()
    };
    validate(bytes, &client(ALICE, "phone"), &policy, at(NOW))
}

#[track_caller]
fn refused_by(anchor: &Authority, forge: &Forge, message: &str) {
    let rejection = judge_by(anchor, &forge.build()).unwrap_err();
    assert_eq!((rejection.reason, rejection.message.as_str()), (CredentialMismatch, message));
    assert!(rejection.key_package_ref.is_some());
}

#[track_caller]
fn accepted_by(anchor: &Authority, forge: &Forge) -> ValidatedKeyPackage {
    judge_by(anchor, &forge.build()).unwrap()
}

fn root(suite: u16) -> Authority {
    Authority::root("Root", suite)
}

fn intermediate(issuer: &Authority) -> Authority {
    issuer.intermediate("Intermediate", |_| {})
}

/// A package whose client `issuer` certifies as [`ALICE`], with what `change` makes of the
/// certificate; `others` are behind it in the chain.
fn certified(
    suite: u16,
    issuer: &Authority,
    others: &[&Authority],
    change: impl FnOnce(&mut CertificateParams),
) -> Forge {
    let forge = good(suite);
    let key = ClientPublicKey::new(suite, &forge.signature_key);
    let certificate = issuer.certify(&key, |params| {
        params.subject_alt_names = vec![uri(ALICE)];
        change(params);
    });
    let others = others.iter().map(|other| other.certificate());
    let chain: Vec<Vec<u8>> = [certificate].into_iter().chain(others).collect();
    forge.x509(&chain)
}

/// Certified by a root, which is the anchor.
#[track_caller]
fn refused_when(message: &str, change: impl Fn(&mut CertificateParams)) {
    for suite in [1, 2] {
        let root = root(suite);
        accepted_by(&root, &certified(suite, &root, &[], |_| {}));
        refused_by(&root, &certified(suite, &root, &[], &change), message);
    }
}

#[track_caller]
fn accepted_when(change: impl Fn(&mut CertificateParams)) {
    for suite in [1, 2] {
        let root = root(suite);
        accepted_by(&root, &certified(suite, &root, &[], &change));
    }
}

/// Certified by an intermediate CA that `change` made, and the root is the anchor.
#[track_caller]
fn refused_when_ca(message: &str, change: impl Fn(&mut CertificateParams)) {
    for suite in [1, 2] {
        let root = root(suite);
        let ca = root.intermediate("Intermediate", &change);
        refused_by(&root, &certified(suite, &ca, &[&ca], |_| {}), message);
    }
}

#[test]
fn certified_by_an_anchor_or_through_an_intermediate_in_every_suite() {
    for suite in servable_cipher_suites() {
        let root = root(suite.0);
        let ca = intermediate(&root);
        for forge in
            [certified(suite.0, &root, &[], |_| {}), certified(suite.0, &ca, &[&ca], |_| {})]
        {
            let valid = accepted_by(&root, &forge);
            assert_eq!(valid.cipher_suite, suite);
            assert_eq!(valid.not_after, at(NOW - 3600 + 30 * DAY));
            assert_eq!(valid.capabilities, [0x2_0002]);
            let credential = [&[0, 2][..], &vector(&forge.credential)].concat();
            assert_eq!(valid.credential_digest, short_digest(&credential));
        }
    }
}

/// RFC 9420, section 5.3: a chain may omit what everybody has.
#[test]
fn with_the_anchor_in_the_chain_or_left_out() {
    for suite in [1, 2] {
        let root = root(suite);
        let ca = intermediate(&root);
        for anchor in [&ca, &root] {
            accepted_by(anchor, &certified(suite, &ca, &[&ca], |_| {}));
            accepted_by(anchor, &certified(suite, &ca, &[&ca, &root], |_| {}));
        }
        accepted_by(&ca, &certified(suite, &ca, &[], |_| {}));
    }
}

#[test]
fn made_by_openmls_and_joined_with() {
    let root = root(1);
    let ca = intermediate(&root);
    let member = |user: &str| {
        Member::new(user, "phone", 2).certified(|key| {
            let names = vec![uri(user)];
            vec![ca.certify(key, |params| params.subject_alt_names = names), ca.certificate()]
        })
    };
    let (mut alice, mut bob) = (member("im:alice"), member("im:bob"));
    let uploaded = bob.key_package(false, Lifetime::default());
    let policy = UploadPolicy { trust_anchors: anchors(&[&root]), ..UploadPolicy::default() };
    let judge = |client| validate(&uploaded, client, &policy, SystemClock.now());
    assert_eq!(judge(&alice.client).unwrap_err().message, NOT_THE_NAME);
    let valid = judge(&bob.client).unwrap();
    let group = alice.create_group();
    let invitation = alice.add(&[valid.bytes]);
    alice.merge_commit();
    assert_eq!(bob.join(&invitation.welcome), group);
    assert_eq!(bob.receive(&alice.send(b"hi Bob")), Some(b"hi Bob".to_vec()));
}

#[test]
fn without_anchors() {
    let bytes = certified(1, &root(1), &[], |_| {}).build();
    let rejection = validate(&bytes, &client(ALICE, "phone"), &every_suite(), at(NOW)).unwrap_err();
    let message = "no trust anchors for X.509 credentials are configured";
    assert_eq!((rejection.reason, rejection.message.as_str()), (CredentialMismatch, message));
}

#[test]
fn any_of_several_anchors_will_do_and_a_basic_credential_is_still_accepted() {
    let [one, two] = ["One", "Two"].map(|name| Authority::root(name, 1));
    let policy = UploadPolicy { trust_anchors: anchors(&[&one, &two]), ..every_suite() };
    for forge in
        [certified(1, &one, &[], |_| {}), certified(1, &two, &[], |_| {}), Forge::new(1, ALICE)]
    {
        validate(&forge.build(), &client(ALICE, "phone"), &policy, at(NOW)).unwrap();
    }
}

#[test]
fn outside_the_time_of_a_certificate() {
    let expired = "a certificate of the chain has expired";
    let early = "a certificate of the chain is not valid yet";
    refused_when(expired, |params| params.not_after = at(NOW - 1));
    refused_when(early, |params| params.not_before = at(NOW + 1));
    refused_when_ca(expired, |params| params.not_after = at(NOW - 1));
    refused_when_ca(early, |params| params.not_before = at(NOW + 1));
    accepted_when(|params| (params.not_before, params.not_after) = (at(NOW), at(NOW)));
}

#[test]
fn no_longer_than_its_certificate() {
    let root = root(1);
    let forge = certified(1, &root, &[], |params| params.not_after = at(NOW + DAY));
    assert_eq!(accepted_by(&root, &forge).not_after, at(NOW + DAY));
}

#[test]
fn of_an_unknown_issuer() {
    for suite in [1, 2] {
        let (ours, theirs) = (root(suite), Authority::root("Theirs", suite));
        let ca = intermediate(&theirs);
        refused_by(&ours, &certified(suite, &theirs, &[], |_| {}), UNKNOWN_ISSUER);
        refused_by(&ours, &certified(suite, &theirs, &[&theirs], |_| {}), UNKNOWN_ISSUER);
        refused_by(&ours, &certified(suite, &ca, &[&ca, &theirs], |_| {}), UNKNOWN_ISSUER);
        // Has the anchor's name, and another key.
        let forged = certified(suite, &root(suite), &[], |_| {});
        refused_by(&ours, &forged, "a signature in the certificate chain is wrong");
    }
}

#[test]
fn with_an_intermediate_missing() {
    for suite in [1, 2] {
        let root = root(suite);
        let outer = root.intermediate("Outer", |_| {});
        let inner = outer.intermediate("Inner", |_| {});
        for others in [&[][..], &[&inner], &[&outer], &[&root]] {
            refused_by(&root, &certified(suite, &inner, others, |_| {}), UNKNOWN_ISSUER);
        }
        accepted_by(&root, &certified(suite, &inner, &[&inner, &outer], |_| {}));
    }
}

#[test]
fn of_another_name() {
    let names = |names: Vec<SanType>| {
        move |params: &mut CertificateParams| params.subject_alt_names = names.clone()
    };
    for name in ["im:bob@example.org", "im:alice@example.or", "IM:alice@example.org", "im:*"] {
        refused_when(NOT_THE_NAME, names(vec![uri(name), dns(name), email(name)]));
    }
    let other_kinds = vec![
        SanType::OtherName((vec![1, 3, 6, 1], OtherNameValue::Utf8String(ALICE.to_owned()))),
        SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    refused_when(NOT_THE_NAME, names(other_kinds));
    let missing = "the certificate has no subject alternative name (SAN)";
    refused_when(missing, |params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, ALICE);
    });
    for name in [uri(ALICE), dns(ALICE), email(ALICE)] {
        accepted_when(names(vec![dns("bob.example.org"), name, uri("im:bob@example.org")]));
    }
}

#[test]
fn by_the_template() {
    let root = root(1);
    let policy = UploadPolicy {
        credential_identity: IdentityTemplate::parse("mls://{user_id}/{client_id}").unwrap(),
        trust_anchors: anchors(&[&root]),
        ..every_suite()
    };
    let judge = |name: &str| {
        let forge = certified(1, &root, &[], |params| params.subject_alt_names = vec![uri(name)]);
        validate(&forge.build(), &client("alice", "phone"), &policy, at(NOW))
    };
    judge("mls://alice/phone").unwrap();
    for name in ["mls://alice/tablet", "mls://bob/phone", "alice"] {
        assert_eq!(judge(name).unwrap_err().message, NOT_THE_NAME);
    }
}

#[test]
fn for_another_key() {
    for suite in [1, 2] {
        let root = root(suite);
        let other = certified(suite, &root, &[], |_| {});
        let forge = certified(suite, &root, &[], |_| {})
            .with(|forge| forge.credential = other.credential.clone());
        refused_by(&root, &forge, NOT_THE_KEY);
    }
}

#[test]
fn for_the_same_bytes_of_another_algorithm() {
    for suite in [1, 2] {
        let root = root(suite);
        let forge = good(suite);
        let as_if = |algorithm| {
            let key = ClientPublicKey { algorithm, bytes: forge.signature_key.clone() };
            root.certify(&key, |params| params.subject_alt_names = vec![uri(ALICE)])
        };
        let algorithm = if suite == 1 { &PKCS_ML_DSA_44 } else { &PKCS_ED25519 };
        let certificate = as_if(algorithm);
        refused_by(&root, &forge.x509(&[certificate]), NOT_THE_KEY);
    }
}

#[test]
fn of_a_ca() {
    refused_when("the first certificate of the chain is a CA's", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
}

#[test]
fn issued_by_what_is_no_ca() {
    let message = "a certificate of the chain after the first is not a CA's";
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        refused_when_ca(message, |params| params.is_ca = is_ca);
    }
    refused_when_ca(message, |params| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    });
    let root = root(1);
    let ca = root.intermediate("CA", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    accepted_by(&root, &certified(1, &ca, &[&ca], |_| {}));
}

#[test]
fn beyond_what_a_ca_may() {
    let constrained = |subtree: GeneralSubtree| {
        move |params: &mut CertificateParams| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![subtree.clone()],
                excluded_subtrees: vec![],
            });
        }
    };
    let root = root(1);
    let ca =
        root.intermediate("CA", constrained(GeneralSubtree::DnsName("example.org".to_owned())));
    let named = |name: &SanType| {
        certified(1, &ca, &[&ca], |params| {
            params.subject_alt_names = vec![uri(ALICE), name.clone()]
        })
    };
    accepted_by(&root, &named(&dns("alice.example.org")));
    let message = "the name constraints of a CA certificate do not allow it";
    refused_by(&root, &named(&dns("alice.example.com")), message);

    // webpki cannot judge e-mail addresses: so every one fails.
    let ca = root.intermediate("CA", constrained(GeneralSubtree::Rfc822Name("a.org".to_owned())));
    let forge =
        certified(1, &ca, &[&ca], |params| params.subject_alt_names = vec![email("x@a.org")]);
    let policy = UploadPolicy { trust_anchors: anchors(&[&root]), ..every_suite() };
    let rejection = validate(&forge.build(), &client("x@a.org", "phone"), &policy, at(NOW));
    assert_eq!(rejection.unwrap_err().message, message);

    let short = root.intermediate("Short", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = short.intermediate("Below", |_| {});
    accepted_by(&root, &certified(1, &short, &[&short], |_| {}));
    let forge = certified(1, &below, &[&below, &short], |_| {});
    refused_by(&root, &forge, "the path is longer than a CA certificate allows");
}

#[test]
fn beyond_what_its_key_is_for() {
    refused_when("the key usage of the certificate does not allow signatures", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    accepted_when(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);

    let im_uri = ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 40]);
    let wrong = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::EmailProtection];
    let message = "an extended key usage does not allow MLS clients";
    refused_when(message, |params| params.extended_key_usages = wrong.to_vec());
    refused_when_ca(message, |params| params.extended_key_usages = wrong.to_vec());
    for right in [im_uri, ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any] {
        let both = vec![wrong[0].clone(), right];
        accepted_when(|params| params.extended_key_usages = both.clone());
    }
}

#[test]
fn with_an_unknown_critical_extension() {
    let extension = |critical| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 9], vec![5, 0]);
        extension.set_criticality(critical);
        move |params: &mut CertificateParams| params.custom_extensions = vec![extension.clone()]
    };
    refused_when("a certificate has an unknown critical extension", extension(true));
    accepted_when(extension(false));
}

/// No CRL is fetched: that the certificate names one changes nothing.
#[test]
fn without_a_look_at_revocation() {
    accepted_when(|params| {
        let uris = vec!["http://localhost:9/crl".to_owned()];
        params.crl_distribution_points = vec![CrlDistributionPoint { uris }];
    });
}

#[test]
fn of_a_chain_of_bounded_length() {
    let root = root(1);
    let mut chain = vec![root.intermediate("CA 1", |_| {})];
    for place in 2..=8 {
        let next = chain[0].intermediate(&format!("CA {place}"), |_| {});
        chain.insert(0, next);
    }
    let of = |len: usize| {
        let chain: Vec<&Authority> = chain[8 - len..].iter().collect();
        certified(1, chain[0], &chain, |_| {})
    };
    accepted_by(&root, &of(6));
    refused_by(&root, &of(7), "the certificate chain is too long");
    refused_by(&root, &of(8), "the credential has more than 8 certificates");
    // Not on the path, and counted.
    let mut others: Vec<&Authority> = chain[1..].iter().collect();
    accepted_by(&root, &certified(1, &root, &others, |_| {}));
    others.push(&chain[0]);
    let message = "the credential has more than 8 certificates";
    refused_by(&root, &certified(1, &root, &others, |_| {}), message);
}

/// Else the paths through 7 CA certificates of one name would all be tried.
#[test]
fn of_a_chain_with_one_path() {
    let root = root(1);
    let twins = [intermediate(&root), intermediate(&root)];
    let forge = certified(1, &twins[0], &[&twins[0], &twins[1]], |_| {});
    refused_by(&root, &forge, "two CA certificates of the chain have the same subject");
}

#[test]
fn that_does_not_parse() {
    let root = root(1);
    let chain = |chain: &[&[u8]]| {
        let chain: Vec<Vec<u8>> = chain.iter().map(|certificate| certificate.to_vec()).collect();
        good(1).x509(&chain)
    };
    let none = "certificate 1 of the chain does not parse";
    refused_by(&root, &chain(&[]), "the credential has no certificate");
    refused_by(&root, &chain(&[b""]), none);
    refused_by(&root, &chain(&[b"garbage"]), none);
    refused_by(&root, &chain(&[&[&root.certificate()[..], &[0]].concat()]), none);
    let good = certified(1, &root, &[], |_| {});
    let half = vector(b"garbage");
    refused_by(
        &root,
        &certified(1, &root, &[], |_| {}).with(|forge| forge.credential.extend(half)),
        "certificate 2 of the chain does not parse",
    );
    let cut = good.credential[..good.credential.len() - 1].to_vec();
    let rejection = judge_by(&root, &good.with(|forge| forge.credential = cut).build());
    let rejection = rejection.unwrap_err();
    assert_eq!((rejection.reason, rejection.message.as_str()), (Malformed, "ends too early"));
}

#[test]
fn unlisted_in_the_capabilities() {
    let root = root(1);
    let forge = certified(1, &root, &[], |_| {}).with(|it| it.capabilities.credentials = vec![1]);
    let rejection = judge_by(&root, &forge.build()).unwrap_err();
    let message = "the capabilities do not list the leaf's own credential type";
    assert_eq!((rejection.reason, rejection.message.as_str()), (InvalidLeafNode, message));
}

#[test]
fn anchors_are_ca_certificates_in_pem_and_nothing_else() {
    let root = root(1);
    let read = |file: &str| {
        let mut anchors = TrustAnchors::default();
        anchors.add_pem(file.as_bytes()).map(|()| anchors)
    };
    let ca = intermediate(&root).certificate();
    assert_eq!(read(&pem(&[root.certificate()])).unwrap(), anchors(&[&root]));
    let with_text = format!("# our CAs\n{}", pem(&[root.certificate(), ca.clone()]));
    assert_ne!(read(&with_text).unwrap(), anchors(&[&root]));

    let block = |tag: &str| pem::encode(&pem::Pem::new(tag, &b"secret"[..]));
    let key = ClientPublicKey::new(1, &good(1).signature_key);
    let client = root.certify(&key, |_| {});
    let may_not_sign = root.intermediate("CA", |params| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    for (file, error) in [
        (String::new(), InvalidTrustAnchors::Empty),
        ("no PEM".to_owned(), InvalidTrustAnchors::Empty),
        (block("CERTIFICATE"), InvalidTrustAnchors::Malformed(1)),
        (pem(slice::from_ref(&ca)) + &block("CERTIFICATE"), InvalidTrustAnchors::Malformed(2)),
        (block("PRIVATE KEY"), InvalidTrustAnchors::NotACertificate("PRIVATE KEY".to_owned())),
        (pem(&[ca.clone(), client]), InvalidTrustAnchors::NotACa(2)),
        (pem(&[may_not_sign.certificate()]), InvalidTrustAnchors::NotACa(1)),
        (pem(&[ca]).replace("MII", "!!!"), InvalidTrustAnchors::NotPem),
    ] {
        assert_eq!(read(&file), Err(error));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Only the KeyPackage around the certificates is signed again.
    #[test]
    fn changed_certificates_never_panic_and_are_never_accepted(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let root = root(1);
        let ca = intermediate(&root);
        let forge = certified(1, &ca, &[&ca], |_| {});
        let good = forge.credential.clone();
        let mut changed = good.clone();
        for (place, byte, change) in changes {
            let place = place.index(changed.len());
            match change {
                0 => changed[place] = byte,
                1 => changed.insert(place, byte),
                _ => changed.truncate(place.max(1)),
            }
        }
        prop_assume!(changed != good);
        prop_assert!(judge_by(&root, &forge.with(|it| it.credential = changed).build()).is_err());
    }
}
