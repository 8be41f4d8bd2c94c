//! The cryptography that judging a KeyPackage takes: hashes, signatures, and whether bytes are a
//! public key. This service never holds a private key of MLS.

use std::collections::BTreeSet;

use aws_lc_rs::{
    agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521},
    digest::{Algorithm, Context, SHA256, SHA384, SHA512},
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ED25519, ML_DSA_44,
        ML_DSA_65, ML_DSA_87, ParsedPublicKey, VerificationAlgorithm,
    },
};
use ed25519_dalek::{Signature, VerifyingKey};
use openmls_traits::types::{Ciphersuite, HashType, HpkeKemType, SignatureScheme};

use super::ids::CipherSuite;

/// Every cipher suite whose KeyPackages openmls parses and whose signatures and public keys
/// aws-lc-rs knows: those of RFC 9420 without X448, and draft-ietf-mls-pq-ciphersuites.
const SERVABLE: [Ciphersuite; 15] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
    Ciphersuite::MLS_256_DHKEMP521_AES256GCM_SHA512_P521,
    Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384,
    Ciphersuite::MLS_192_MLKEM1024_AES256GCM_SHA384_P384,
    Ciphersuite::MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519,
    Ciphersuite::MLS_128_MLKEM768X25519_AES256GCM_SHA384_Ed25519,
    Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_MLKEM768_AES256GCM_SHA384_P256,
    Ciphersuite::MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65,
    Ciphersuite::MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44,
    Ciphersuite::MLS_256_MLKEM1024_AES256GCM_SHA512_MLDSA87,
    Ciphersuite::MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87,
    Ciphersuite::MLS_128_MLKEM768_AES256GCM_SHA384_Ed25519,
];

/// Every cipher suite that a configuration may allow.
pub fn servable_cipher_suites() -> BTreeSet<CipherSuite> {
    SERVABLE.iter().map(|&suite| CipherSuite(suite.into())).collect()
}

/// The algorithms of a cipher suite; `None` when it is not servable.
pub(super) fn servable(suite: CipherSuite) -> Option<Ciphersuite> {
    SERVABLE.into_iter().find(|&known| u16::from(known) == suite.0)
}

/// Why bytes are not a public key, as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPublicKey(&'static str);

const WRONG_LENGTH: InvalidPublicKey = InvalidPublicKey("has the wrong length");
const OFF_CURVE: InvalidPublicKey = InvalidPublicKey("is not an uncompressed point of the curve");
const LOW_ORDER: InvalidPublicKey = InvalidPublicKey("is all-zero or of low order");
const ALL_ZERO: InvalidPublicKey = InvalidPublicKey("is all-zero");
const OUT_OF_RANGE: InvalidPublicKey = InvalidPublicKey("has a coefficient out of range");

/// The hash of `parts`, one behind the other.
pub(super) fn hash(hash: HashType, parts: &[&[u8]]) -> Vec<u8> {
    let algorithm: &'static Algorithm = match hash {
        HashType::Sha2_256 => &SHA256,
        HashType::Sha2_384 => &SHA384,
        HashType::Sha2_512 => &SHA512,
    };
    let mut context = Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}

/// A public key that verifies signatures (RFC 9420, section 5.1.2).
pub(super) struct SignatureKey {
    key: ParsedPublicKey,
    /// Its encoding, where it is one of Ed25519.
    edwards: Option<[u8; 32]>,
}

impl SignatureKey {
    /// Accepts the one encoding that RFC 9420, section 5.1.1 gives the scheme's public keys.
    pub(super) fn parse(scheme: SignatureScheme, key: &[u8]) -> Result<Self, InvalidPublicKey> {
        let (algorithm, len): (&'static dyn VerificationAlgorithm, usize) = match scheme {
            SignatureScheme::ED25519 => (&ED25519, 32),
            SignatureScheme::ECDSA_SECP256R1_SHA256 => (&ECDSA_P256_SHA256_ASN1, 65),
            SignatureScheme::ECDSA_SECP384R1_SHA384 => (&ECDSA_P384_SHA384_ASN1, 97),
            SignatureScheme::ECDSA_SECP521R1_SHA512 => (&ECDSA_P521_SHA512_ASN1, 133),
            SignatureScheme::MLDSA44 => (&ML_DSA_44, 1312),
            SignatureScheme::MLDSA65 => (&ML_DSA_65, 1952),
            SignatureScheme::MLDSA87 => (&ML_DSA_87, 2592),
            SignatureScheme::ED448 => return Err(InvalidPublicKey("is of an unknown scheme")),
        };
        if key.len() != len {
            return Err(WRONG_LENGTH);
        }
        // aws-lc-rs would also take a hybrid point (first byte 6 or 7), which nobody else does.
        if matches!(len, 65 | 97 | 133) && key.first() != Some(&4) {
            return Err(OFF_CURVE);
        }
        let edwards = key.try_into().ok().filter(|_| scheme == SignatureScheme::ED25519);
        let key = ParsedPublicKey::new(algorithm, key).map_err(|_| OFF_CURVE)?;
        Ok(Self { key, edwards })
    }

    /// Whether [`all_hold`] can judge its signatures.
    pub(super) fn goes_together(&self) -> bool {
        self.edwards.is_some()
    }
}

/// That a key signed some content with a label (RFC 9420, section 5.1.2).
pub(super) struct Claim<'a> {
    key: &'a SignatureKey,
    /// SignContent.
    signed: Vec<u8>,
    signature: &'a [u8],
}

impl<'a> Claim<'a> {
    pub(super) fn new(
        key: &'a SignatureKey,
        label: &str,
        content: &[u8],
        signature: &'a [u8],
    ) -> Self {
        let label = ["MLS 1.0 ".as_bytes(), label.as_bytes()].concat();
        let mut signed = Vec::with_capacity(label.len() + content.len() + 8);
        for field in [&label, content] {
            signed.extend_from_slice(vector_header(field.len()).as_ref());
            signed.extend_from_slice(field);
        }
        Self { key, signed, signature }
    }

    /// VerifyWithLabel (RFC 9420, section 5.1.2).
    pub(super) fn holds(&self) -> bool {
        self.key.key.verify_sig(&self.signed, self.signature).is_ok()
    }
}

/// Whether all of these Ed25519 signatures hold, by one equation for all of them, which takes half the
/// time of one for each. It is the one with the cofactor (RFC 8032, section 5.1.7), where
/// [`Claim::holds`] looks at the one without: see decision 0008. When it is not so, or some are of
/// another scheme, it does not tell which.
pub(super) fn all_hold(claims: &[Claim<'_>]) -> bool {
    let mut keys: Vec<VerifyingKey> = Vec::with_capacity(claims.len());
    let mut signed = Vec::with_capacity(claims.len());
    let mut signatures = Vec::with_capacity(claims.len());
    for Claim { key, signed: content, signature } in claims {
        let Some(bytes) = &key.edwards else { return false };
        // Decoding takes time, and a client has one key.
        let key = match keys.last() {
            Some(last) if last.as_bytes() == bytes => *last,
            _ => match VerifyingKey::from_bytes(bytes) {
                Ok(key) => key,
                Err(_) => return false,
            },
        };
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        keys.push(key);
        signed.push(&content[..]);
        signatures.push(signature);
    }
    ed25519_dalek::verify_batch(&signed, &signatures, &keys).is_ok()
}

/// The length in front of a vector of `len` bytes (RFC 9420, section 2.1.2). Nothing here is
/// longer than a KeyPackage may be, so four bytes always hold it.
pub(super) fn vector_header(len: usize) -> impl AsRef<[u8]> {
    let len = u32::try_from(len).unwrap_or(u32::MAX); // see above
    let [first, second, third, fourth] = len.to_be_bytes();
    match len {
        0..0x40 => Header([fourth, 0, 0, 0], 1),
        0x40..0x4000 => Header([third | 0x40, fourth, 0, 0], 2),
        _ => Header([first | 0x80, second, third, fourth], 4),
    }
}

struct Header([u8; 4], usize);

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Whether `key` is a public key of the KEM: of the right length, and one that a sender can
/// encapsulate to. Checks as the KEM's own standard demands, without a scalar multiplication.
pub fn check_public_key(kem: HpkeKemType, key: &[u8]) -> Result<(), InvalidPublicKey> {
    match kem {
        HpkeKemType::DhKem25519 => check_x25519(key),
        HpkeKemType::DhKemP256 => check_point(&ECDH_P256, 65, key),
        HpkeKemType::DhKemP384 => check_point(&ECDH_P384, 97, key),
        HpkeKemType::DhKemP521 => check_point(&ECDH_P521, 133, key),
        HpkeKemType::MlKem768 => check_ml_kem(1184, key),
        HpkeKemType::MlKem1024 => check_ml_kem(1568, key),
        // draft-connolly-cfrg-xwing-kem, section 5.2: ML-KEM-768, then X25519.
        HpkeKemType::XWingKemDraft6 => {
            let (ml_kem, x25519) = key.split_at_checked(1184).ok_or(WRONG_LENGTH)?;
            check_x25519(x25519)?;
            check_ml_kem(1184, ml_kem)
        }
        HpkeKemType::DhKem448 => Err(InvalidPublicKey("is of an unknown KEM")),
    }
}

/// SEC 1, section 3.2.2.1: an uncompressed point that is on the curve.
fn check_point(
    curve: &'static agreement::Algorithm,
    len: usize,
    key: &[u8],
) -> Result<(), InvalidPublicKey> {
    if key.len() != len {
        return Err(WRONG_LENGTH);
    }
    if key.first() != Some(&4) {
        return Err(OFF_CURVE);
    }
    let key = agreement::UnparsedPublicKey::new(curve, key);
    agreement::ParsedPublicKey::try_from(&key).map(drop).map_err(|_| OFF_CURVE)
}

/// RFC 9180, section 7.1.4, by way of RFC 7748, section 6.1: no key whose every shared secret is
/// zero. Those are the points of order 1, 2, 4 and 8, each in every encoding it has.
fn check_x25519(key: &[u8]) -> Result<(), InvalidPublicKey> {
    let mut point: [u8; 32] = key.try_into().map_err(|_| WRONG_LENGTH)?;
    point[31] &= 0x7f; // X25519 ignores this bit (RFC 7748, section 5)
    if LOW_ORDER_POINTS.contains(&point) { Err(LOW_ORDER) } else { Ok(()) }
}

const LOW_ORDER_POINTS: [[u8; 32]; 7] = [
    near(0, 0, 0),
    near(1, 0, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    near(0xec, 0xff, 0x7f), // the prime less one
    near(0xed, 0xff, 0x7f), // the prime, which stands for zero
    near(0xee, 0xff, 0x7f), // the prime plus one, which stands for one
];

const fn near(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut point = [middle; 32];
    point[0] = first;
    point[31] = last;
    point
}

/// FIPS 203, section 7.2: the type check and the modulus check of an encapsulation key, which is
/// 12-bit coefficients below 3329 and a seed of 32 bytes. Not all coefficients may be zero: what
/// is encapsulated to such a key can be read by anyone.
fn check_ml_kem(len: usize, key: &[u8]) -> Result<(), InvalidPublicKey> {
    if key.len() != len {
        return Err(WRONG_LENGTH);
    }
    let coefficients = &key[..len - 32];
    if coefficients.iter().all(|&byte| byte == 0) {
        return Err(ALL_ZERO);
    }
    let (triples, _) = coefficients.as_chunks::<3>();
    let reduced = triples.iter().all(|&[low, middle, high]| {
        let (low, middle, high) = (u16::from(low), u16::from(middle), u16::from(high));
        (low | (middle & 0x0f) << 8) < 3329 && (middle >> 4 | high << 4) < 3329
    });
    if reduced { Ok(()) } else { Err(OUT_OF_RANGE) }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
        kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768},
    };

    use super::*;

    #[test]
    fn low_order_points_are_those_that_x25519_refuses() {
        let mine = PrivateKey::generate(&X25519).unwrap();
        for mut point in LOW_ORDER_POINTS {
            for bit in [0, 0x80] {
                point[31] ^= bit;
                assert_eq!(check_public_key(HpkeKemType::DhKem25519, &point), Err(LOW_ORDER));
                let peer = UnparsedPublicKey::new(&X25519, point);
                assert!(agree(&mine, peer, (), |_| Ok(())).is_err(), "{point:02x?}");
            }
        }
        let good = mine.compute_public_key().unwrap();
        assert_eq!(check_public_key(HpkeKemType::DhKem25519, good.as_ref()), Ok(()));
    }

    #[test]
    fn every_bad_coefficient_of_an_encapsulation_key_is_found() {
        let key = DecapsulationKey::generate(&ML_KEM_768).unwrap();
        let good = key.encapsulation_key().unwrap().key_bytes().unwrap().as_ref().to_vec();
        assert_eq!(check_public_key(HpkeKemType::MlKem768, &good), Ok(()));
        for triple in 0..(1184 - 32) / 3 {
            for (place, value) in [(0, [0x01, 0x0d]), (1, [0x10, 0xd0])] {
                let mut bad = good.clone();
                bad[triple * 3 + place] = value[0];
                bad[triple * 3 + place + 1] = value[1];
                assert_eq!(check_public_key(HpkeKemType::MlKem768, &bad), Err(OUT_OF_RANGE));
                let refused = EncapsulationKey::new(&ML_KEM_768, &bad)
                    .is_ok_and(|key| key.encapsulate().is_ok());
                assert!(!refused, "aws-lc takes triple {triple}");
            }
        }
    }

    #[test]
    fn vector_headers_are_minimal() {
        for (len, header) in [
            (0, &[0][..]),
            (63, &[63]),
            (64, &[0x40, 64]),
            (16383, &[0x7f, 0xff]),
            (16384, &[0x80, 0, 0x40, 0]),
        ] {
            assert_eq!(vector_header(len).as_ref(), header);
        }
    }
}
