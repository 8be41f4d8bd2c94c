//! Key pairs made for one test.

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use jsonwebtoken::Algorithm;
use pem::Pem;

/// A key pair as PEM texts.
pub(crate) struct Pair {
    pub(crate) algorithm: Algorithm,
    pub(crate) private: String,
    pub(crate) public: String,
}

fn pair(algorithm: Algorithm, private: &[u8], public: PublicKeyX509Der<'_>) -> Pair {
    Pair {
        algorithm,
        private: pem::encode(&Pem::new("PRIVATE KEY", private)),
        public: pem::encode(&Pem::new("PUBLIC KEY", public.as_ref())),
    }
}

pub(crate) fn ed25519() -> Pair {
    let key = Ed25519KeyPair::generate().unwrap();
    let private = key.to_pkcs8v1().unwrap();
    pair(Algorithm::EdDSA, private.as_ref(), key.public_key().as_der().unwrap())
}

pub(crate) fn p256() -> Pair {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let private = key.to_pkcs8v1().unwrap();
    pair(Algorithm::ES256, private.as_ref(), key.public_key().as_der().unwrap())
}

pub(crate) fn rsa() -> Pair {
    let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
    pair(Algorithm::RS256, private.as_ref(), key.public_key().as_der().unwrap())
}
