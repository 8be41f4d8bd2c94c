//! The public keys that tokens are verified with.

use std::{fs, path::Path};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
        RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Claims, jwks::Jwks};
use crate::config::JwksSection;

/// The algorithms of tokens, each with one kind of key.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

/// At most this many keys, so that a token without a key id costs a bounded number of tries.
const MAX_KEYS: usize = 16;

/// A public key and the one algorithm that it serves.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl VerifyingKey {
    /// A key from its SubjectPublicKeyInfo (RFC 5280) or its raw form: Ed25519 for EdDSA, P-256
    /// for ES256, RSA of 2048 to 8192 bits for RS256.
    ///
    /// # Errors
    /// Another algorithm, or bytes that are no such key.
    pub fn new(id: Option<String>, algorithm: Algorithm, public: &[u8]) -> anyhow::Result<Self> {
        let parsed = match algorithm {
            Algorithm::EdDSA => ParsedPublicKey::new(&ED25519, public),
            Algorithm::ES256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public),
            Algorithm::RS256 => ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public),
            _ => bail!("tokens are signed with EdDSA, ES256 or RS256"),
        };
        let parsed = parsed.ok().with_context(|| format!("no public key for {algorithm:?}"))?;
        let der = parsed.as_der().ok().context("no public key")?;
        let key = match algorithm {
            Algorithm::EdDSA => DecodingKey::from_ed_der(der.as_ref()),
            Algorithm::ES256 => DecodingKey::from_ec_der(der.as_ref()),
            _ => {
                let size = rsa::PublicEncryptingKey::from_der(der.as_ref());
                let size = size.map_or(0, |key| key.key_size_bits());
                ensure!((2048..=8192).contains(&size), "an RSA key needs 2048 to 8192 bits");
                DecodingKey::from_rsa_der(der.as_ref())
            }
        };
        // Only the signature is checked by the library: it would read the clock by itself.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Ok(Self { id, algorithm, key, validation })
    }

    /// The claims of a token that this key signed.
    pub(super) fn verify(&self, token: &str) -> jsonwebtoken::errors::Result<Claims> {
        jsonwebtoken::decode(token, &self.key, &self.validation).map(|data| data.claims)
    }

    fn from_pem(pem: &pem::Pem) -> anyhow::Result<Self> {
        match pem.tag() {
            "PUBLIC KEY" => {}
            tag if tag.contains("PRIVATE KEY") => {
                bail!("it holds a private key; make its public half: openssl pkey -pubout")
            }
            tag => bail!("it holds a {tag}, not a PUBLIC KEY"),
        }
        // A SubjectPublicKeyInfo names its algorithm, so at most one of them takes it.
        let mut keys =
            ALGORITHMS.iter().flat_map(|&algorithm| Self::new(None, algorithm, pem.contents()));
        keys.next().context("it holds no Ed25519, P-256 or RSA (2048 to 8192 bits) public key")
    }

    /// Whether it may have signed a token with this header. A key without an id, as one from a PEM
    /// file, may have signed with any id.
    pub(super) fn fits(&self, header: &Header) -> bool {
        self.algorithm == header.alg
            && (header.kid.is_none() || self.id.is_none() || self.id == header.kid)
    }

    /// `None` for a key that serves something else than verifying such tokens.
    fn from_jwk(jwk: &Jwk) -> anyhow::Result<Option<Self>> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::OctetKey(_) => bail!("is a shared secret, not a public key"),
            _ => return Ok(None),
        };
        let common = &jwk.common;
        let operations = common.key_operations.as_ref();
        let for_signatures = common.key_algorithm.is_none_or(|own| own == algorithm.into())
            && common.public_key_use.as_ref().is_none_or(|own| *own == PublicKeyUse::Signature)
            && operations.is_none_or(|own| own.contains(&KeyOperations::Verify));
        if !for_signatures {
            return Ok(None);
        }
        let id = common.key_id.clone();
        if let AlgorithmParameters::RSA(p) = &jwk.algorithm {
            let [n, e] = [&p.n, &p.e].map(|number| URL_SAFE_NO_PAD.decode(number));
            let components = RsaPublicKeyComponents { n: n?, e: e? };
            let der: PublicKeyX509Der<'_> = components.as_der().ok().context("no RSA key")?;
            return Self::new(id, algorithm, der.as_ref()).map(Some);
        }
        let key = DecodingKey::from_jwk(jwk)?;
        Self::new(id, algorithm, key.try_get_as_bytes()?).map(Some)
    }
}

/// The keys of all trusted issuers: read, and replaced, as a whole.
#[derive(Debug, Clone)]
pub struct KeySet(Vec<VerifyingKey>);

impl KeySet {
    /// One to sixteen keys.
    ///
    /// # Errors
    /// None, or more.
    pub fn new(keys: Vec<VerifyingKey>) -> anyhow::Result<Self> {
        ensure!(!keys.is_empty(), "no usable public key");
        ensure!(keys.len() <= MAX_KEYS, "more than {MAX_KEYS} public keys");
        Ok(Self(keys))
    }

    /// Reads files of PEM blocks or JWKS documents (RFC 7517, section 5).
    ///
    /// # Errors
    /// A file that cannot be read or holds no usable public key; the first such file is named.
    pub fn load(files: &[impl AsRef<Path>]) -> anyhow::Result<Self> {
        Self::from_texts(&read_files(files)?)
    }

    /// What files hold, each with its name.
    pub(super) fn from_texts(texts: &[(String, String)]) -> anyhow::Result<Self> {
        let mut keys = Vec::new();
        for (name, text) in texts {
            let parse = if text.trim_start().starts_with('{') { read_jwks } else { read_pem };
            let found = parse(text).and_then(Self::new).with_context(|| name.clone())?;
            keys.extend(found.0);
        }
        Self::new(keys)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Fetches what an issuer publishes.
    ///
    /// # Errors
    /// It cannot be fetched, or holds no usable public key.
    pub async fn fetch(section: &JwksSection) -> anyhow::Result<Self> {
        Self::from_jwks(&Jwks::new(section)?.fetch().await?)
    }

    /// A JWKS document.
    pub(super) fn from_jwks(text: &str) -> anyhow::Result<Self> {
        read_jwks(text).and_then(Self::new)
    }

    pub(super) fn into_keys(self) -> Vec<VerifyingKey> {
        self.0
    }
}

/// The name and the text of each file.
pub(super) fn read_files(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<(String, String)>> {
    let read = |path: &Path| {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| name.clone())?;
        Ok((name, text))
    };
    files.iter().map(|path| read(path.as_ref())).collect()
}

fn read_pem(text: &str) -> anyhow::Result<Vec<VerifyingKey>> {
    let blocks = pem::parse_many(text).ok().context("it is neither PEM nor JWKS")?;
    blocks.iter().map(VerifyingKey::from_pem).collect()
}

fn read_jwks(text: &str) -> anyhow::Result<Vec<VerifyingKey>> {
    #[derive(Deserialize)]
    struct Jwks {
        keys: Vec<Value>,
    }
    // The parser's messages may repeat what is in the file.
    let set: Jwks = serde_json::from_str(text).ok().context("it is no JWKS")?;
    let mut keys = Vec::new();
    for (index, value) in set.keys.into_iter().enumerate() {
        let name = || format!("keys[{index}]");
        ensure!(
            value.get("d").is_none(),
            "keys[{index}] is a private key: publish its public half"
        );
        let jwk: Jwk =
            serde_json::from_value(value).ok().context("is no JWK").with_context(name)?;
        keys.extend(VerifyingKey::from_jwk(&jwk).with_context(name)?);
    }
    Ok(keys)
}
