//! A KeyPackage is refused for exactly the rule it breaks, and never for anything else.

mod accepts;
mod credential;
mod header;
mod init_key;
mod leaf_node;
mod lifetime;
mod malformed;
mod signatures;
mod x509;

use keypool_service::domain::{
    clock::{Clock as _, SystemClock},
    crypto::servable_cipher_suites,
    ids::{CipherSuite, ClientId, ClientKey, UserId, short_digest},
    key_package::{
        IdentityTemplate,
        RejectReason::{self, *},
        Rejection, UploadPolicy, ValidatedKeyPackage, validate_all,
    },
};
use keypool_testing::{
    forge::{Forge, NOW, Source, app_data_dictionary, hpke_public_key, mls_message, vector},
    member::{Libcrux, Member, RustCrypto},
};
use openmls::prelude::{
    Ciphersuite, HpkeKemType, KeyPackageIn, Lifetime, OpenMlsCrypto, OpenMlsProvider,
    ProtocolVersion,
};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use tls_codec::DeserializeBytes as _;

const LAST_RESORT: u16 = 0x000a;
const APP_DATA_DICTIONARY: u16 = 0x0006;
const GREASE: u16 = 0x3a3a;
const DAY: u64 = 86_400;

/// Every suite that an openmls provider here can make a package for; 5 and 7 are only forged.
const RUST_CRYPTO: [u16; 12] = [1, 2, 3, 0x42, 0x4e, 0x4f, 0x50, 0x51, 0x52, 0x906, 0x907, 0xf042];
const LIBCRUX: [u16; 1] = [0x4d];
const FORGED_ONLY: [u16; 2] = [5, 7];

fn client(user: &str, client: &str) -> ClientKey {
    ClientKey { user: UserId::parse(user).unwrap(), client: ClientId::parse(client).unwrap() }
}

fn at(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds.try_into().unwrap()).unwrap()
}

fn every_suite() -> UploadPolicy {
    UploadPolicy { cipher_suites: servable_cipher_suites(), ..UploadPolicy::default() }
}

/// Judges one package alone.
fn validate(
    bytes: &[u8],
    caller: &ClientKey,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Result<ValidatedKeyPackage, Rejection> {
    let mut results = validate_all(&[bytes.to_vec()], caller, policy, now);
    assert_eq!(results.len(), 1);
    results.remove(0)
}

fn judge(bytes: &[u8]) -> Result<ValidatedKeyPackage, Rejection> {
    validate(bytes, &client("alice", "phone"), &every_suite(), at(NOW))
}

fn good(suite: u16) -> Forge {
    Forge::new(suite, "alice")
}

#[track_caller]
fn accepted(forge: &Forge) -> ValidatedKeyPackage {
    judge(&forge.build()).unwrap()
}

#[track_caller]
fn refused(bytes: &[u8], reason: RejectReason, message: &str) {
    let rejection = judge(bytes).unwrap_err();
    assert_eq!((rejection.reason, rejection.message.as_str()), (reason, message));
}

#[track_caller]
fn refused_forge(reason: RejectReason, message: &str, change: impl FnOnce(&mut Forge)) {
    let forge = good(1).with(change);
    refused(&forge.build(), reason, message);
}

/// Keys that are none for the KEM of `suite`, and what is wrong with each.
fn bad_keys(suite: u16) -> Vec<(Vec<u8>, &'static str)> {
    let kem = Ciphersuite::try_from(suite).unwrap().hpke_kem_algorithm();
    let good = hpke_public_key(kem);
    let len = good.len();
    let mut bad = vec![
        (vec![], "has the wrong length"),
        (good[1..].to_vec(), "has the wrong length"),
        ([&good[..], &[0]].concat(), "has the wrong length"),
    ];
    let changed = |place: usize, value: u8| {
        let mut key = good.clone();
        key[place] = value;
        key
    };
    match kem {
        HpkeKemType::DhKem25519 => bad.push((vec![0; 32], "is all-zero or of low order")),
        HpkeKemType::MlKem768 | HpkeKemType::MlKem1024 => {
            bad.push((vec![0; len], "is all-zero"));
            bad.push((vec![0xff; len], "has a coefficient out of range"));
        }
        HpkeKemType::XWingKemDraft6 => {
            let zeros = [&good[..1184], &[0; 32]].concat();
            bad.push((zeros, "is all-zero or of low order"));
            let out_of_range = [&[0xff; 1184][..], &good[1184..]].concat();
            bad.push((out_of_range, "has a coefficient out of range"));
        }
        _ => {
            let defect = "is not an uncompressed point of the curve";
            bad.push((vec![0; len], defect));
            bad.push((changed(len - 1, good[len - 1] ^ 1), defect));
            bad.push((changed(0, 6 | good[len - 1] & 1), defect)); // the hybrid encoding
            let infinity = [&[4][..], &vec![0; len - 1]].concat();
            bad.push((infinity, defect));
        }
    }
    bad
}

mod rejection {
    use super::*;

    #[test]
    fn has_the_ref_when_it_can_be_computed() {
        let expired = |suite| good(suite).lifetime(0, 1).build();
        for (suite, len) in [(1, 32), (7, 48), (5, 64)] {
            let ours = judge(&expired(suite)).unwrap_err().key_package_ref.unwrap();
            assert_eq!(ours.0.len(), len);
        }
        let bytes = expired(1);
        let wrapped = judge(&mls_message(1, 5, &bytes)).unwrap_err().key_package_ref;
        assert_eq!(wrapped, judge(&bytes).unwrap_err().key_package_ref);
        let input =
            [b"\x1cMLS 1.0 KeyPackage Reference", &varint(bytes.len())[..], &bytes].concat();
        let hash = RustCrypto::default()
            .crypto()
            .hash(Ciphersuite::try_from(1).unwrap().hash_algorithm(), &input);
        assert_eq!(wrapped.unwrap().0, hash.unwrap());

        let unknown_suite = good(1).with(|it| it.cipher_suite = 0xffff).build();
        for bytes in [&b"garbage"[..], &unknown_suite] {
            assert_eq!(judge(bytes).unwrap_err().key_package_ref, None);
        }
    }

    fn varint(len: usize) -> [u8; 2] {
        (u16::try_from(len).unwrap() | 0x4000).to_be_bytes()
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(judge(&bytes).is_err());
    }

    #[test]
    fn changed_packages_never_panic_and_are_never_accepted(
        suite in prop::sample::select(vec![1_u16, 2, 5, 0x4d]),
        wrapped: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
    ) {
        let good = good(suite).extension(APP_DATA_DICTIONARY, &app_data_dictionary(&[(4, b"")]));
        let good = if wrapped { mls_message(1, 5, &good.build()) } else { good.build() };
        let mut bytes = good.clone();
        for (place, byte, change) in changes {
            let place = place.index(bytes.len());
            match change {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => bytes.truncate(place.max(1)),
            }
        }
        prop_assume!(bytes != good);
        prop_assert!(judge(&bytes).is_err());
    }
}
