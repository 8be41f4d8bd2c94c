//! Certificates for X.509 credentials (RFC 9420, section 5.3).

use openmls_traits::types::{Ciphersuite, SignatureScheme};
pub use rcgen;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_ML_DSA_44, PKCS_ML_DSA_65,
    PKCS_ML_DSA_87, PublicKeyData, SignatureAlgorithm,
};

use crate::forge::vector;

/// A CA. All that it issues is valid from 1975 to 4096 unless a test changes it.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

/// The public key of a client.
#[derive(Debug, Clone)]
pub struct ClientPublicKey {
    /// What kind of key the certificate says that it is.
    pub algorithm: &'static SignatureAlgorithm,
    /// As it stands in a leaf node's signature_key.
    pub bytes: Vec<u8>,
}

impl PublicKeyData for ClientPublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl ClientPublicKey {
    /// The signature_key of a leaf node of this cipher suite.
    pub fn new(cipher_suite: u16, signature_key: &[u8]) -> Self {
        Self { algorithm: algorithm(cipher_suite), bytes: signature_key.to_vec() }
    }
}

impl Authority {
    /// A CA of this name with a self-signed certificate, and a key of the suite's signature
    /// scheme.
    pub fn root(name: &str, cipher_suite: u16) -> Self {
        let key = KeyPair::generate_for(algorithm(cipher_suite)).expect("a key");
        let params = ca(name);
        let certificate = params.self_signed(&key).expect("a certificate").der().to_vec();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A CA of this name that this one certifies, with what `change` makes of its certificate.
    pub fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = ca(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Self { issuer: Issuer::new(params, key), certificate: certificate.der().to_vec() }
    }

    /// The certificate of a client, with what `change` makes of it. It says nothing of the client
    /// by itself.
    pub fn certify(
        &self,
        key: &ClientPublicKey,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = named("client");
        change(&mut params);
        params.signed_by(key, &self.issuer).expect("a certificate").der().to_vec()
    }

    /// The DER encoding of its own certificate.
    pub fn certificate(&self) -> Vec<u8> {
        self.certificate.clone()
    }
}

/// What an X.509 credential holds: `Certificate certificates<V>` without its length.
pub fn certificates(chain: &[Vec<u8>]) -> Vec<u8> {
    chain.iter().flat_map(|certificate| vector(certificate)).collect()
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn algorithm(cipher_suite: u16) -> &'static SignatureAlgorithm {
    let suite = Ciphersuite::try_from(cipher_suite).expect("a suite that openmls knows");
    match suite.signature_algorithm() {
        SignatureScheme::ED25519 => &PKCS_ED25519,
        SignatureScheme::ECDSA_SECP256R1_SHA256 => &PKCS_ECDSA_P256_SHA256,
        SignatureScheme::ECDSA_SECP384R1_SHA384 => &PKCS_ECDSA_P384_SHA384,
        SignatureScheme::ECDSA_SECP521R1_SHA512 => &PKCS_ECDSA_P521_SHA512,
        SignatureScheme::MLDSA44 => &PKCS_ML_DSA_44,
        SignatureScheme::MLDSA65 => &PKCS_ML_DSA_65,
        SignatureScheme::MLDSA87 => &PKCS_ML_DSA_87,
        SignatureScheme::ED448 => panic!("no Ed448 here"),
    }
}
