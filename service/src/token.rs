//! Minting tokens: the private key of a token issuer. The server itself needs public keys only.

use std::{fs, io, io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use aws_lc_rs::{
    encoding::AsDer as _,
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pem::{EncodeConfig, LineEnding, Pem};
use serde_json::json;
use time::OffsetDateTime;

use crate::{
    domain::ids::ClientKey,
    grpc::auth::{Scope, VerifyingKey},
};

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// `sub` and `client_id`.
    pub key: ClientKey,
    /// `scope`.
    pub scopes: Vec<Scope>,
    /// How long it is valid.
    pub ttl: Duration,
    /// `aud`.
    pub audience: String,
    /// `iss`.
    pub issuer: Option<String>,
    /// `kid`, the name of the key in a JWKS.
    pub key_id: Option<String>,
}

/// A private key that signs tokens: Ed25519 (EdDSA), P-256 (ES256) or RSA (RS256).
#[derive(Debug)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
    public: Vec<u8>,
}

impl SigningKey {
    /// Reads a PEM file with one PKCS#8 private key.
    ///
    /// # Errors
    /// A file that cannot be read or holds anything else. Its content is never repeated.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let read = || Self::from_pem(&fs::read_to_string(path)?);
        read().with_context(|| path.display().to_string())
    }

    /// Reads the key at `path`; makes an Ed25519 one there first when there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read or written, or is no key.
    pub fn load_or_create(path: &Path) -> anyhow::Result<Self> {
        if !path.try_exists().with_context(|| path.display().to_string())? {
            create_key_file(path).with_context(|| path.display().to_string())?;
        }
        Self::load(path)
    }

    /// Reads a PEM text with one PKCS#8 private key (RFC 5958).
    ///
    /// # Errors
    /// Any other text. It is never repeated.
    pub fn from_pem(text: &str) -> anyhow::Result<Self> {
        let pem = pem::parse(text).ok().context("it is no PEM file")?;
        match pem.tag() {
            "PRIVATE KEY" => {}
            "PUBLIC KEY" => bail!("it holds a public key; tokens are signed with the private one"),
            "ENCRYPTED PRIVATE KEY" => bail!("it is encrypted; decrypt it: openssl pkcs8 -in FILE"),
            tag if tag.contains("PRIVATE KEY") => bail!(
                "it holds an {tag}; convert it to PKCS#8: openssl pkcs8 -topk8 -nocrypt -in FILE"
            ),
            tag => bail!("it holds a {tag}, not a PRIVATE KEY"),
        }
        let der = pem.contents();
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8(der) {
            let key = EncodingKey::from_ed_der(der);
            let public = pair.public_key().as_ref().to_vec();
            return Ok(Self { algorithm: Algorithm::EdDSA, key, public });
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            let key = EncodingKey::from_ec_der(der);
            let public = pair.public_key().as_ref().to_vec();
            return Ok(Self { algorithm: Algorithm::ES256, key, public });
        }
        if let Ok(pair) = rsa::KeyPair::from_pkcs8(der) {
            let key = EncodingKey::from_rsa_pem(text.as_bytes())?;
            let public = pair.public_key().as_ref().to_vec();
            return Ok(Self { algorithm: Algorithm::RS256, key, public });
        }
        bail!("it holds no Ed25519, P-256 or RSA (2048 to 8192 bits) private key")
    }

    /// The public half, which verifies what this key signs.
    ///
    /// # Errors
    /// None is known: the key was checked when it was read.
    pub fn verifying_key(&self) -> anyhow::Result<VerifyingKey> {
        VerifyingKey::new(None, self.algorithm, &self.public)
    }

    /// Signs a JWT that is valid from `now` on.
    ///
    /// # Errors
    /// A `ttl` below a second, or beyond what a date can hold.
    pub fn mint(&self, request: &TokenRequest, now: OffsetDateTime) -> anyhow::Result<String> {
        let ttl = i64::try_from(request.ttl.as_secs()).ok().filter(|seconds| *seconds > 0);
        let end = ttl.and_then(|ttl| now.checked_add(time::Duration::seconds(ttl)));
        let end =
            end.context("the lifetime must be at least a second and end before year 10000")?;
        let scopes: Vec<&str> = request.scopes.iter().map(|scope| scope.as_str()).collect();
        let mut claims = json!({
            "sub": request.key.user.as_str(),
            "client_id": request.key.client.as_str(),
            "scope": scopes.join(" "),
            "aud": request.audience,
            "iat": now.unix_timestamp(),
            "exp": end.unix_timestamp(),
        });
        if let Some(issuer) = &request.issuer {
            claims["iss"] = json!(issuer);
        }
        let header = Header { kid: request.key_id.clone(), ..Header::new(self.algorithm) };
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }
}

/// Makes an Ed25519 key in a new file that only its owner may read. The file appears whole or
/// not at all, and one that is there is left alone.
fn create_key_file(path: &Path) -> anyhow::Result<()> {
    let pair = Ed25519KeyPair::generate().ok().context("no key could be made")?;
    let der = pair.as_der().ok().context("no key could be made")?;
    let der: &aws_lc_rs::encoding::Pkcs8V1Der<'_> = &der;
    let pem = pem::encode_config(
        &Pem::new("PRIVATE KEY", der.as_ref()),
        EncodeConfig::new().set_line_ending(LineEnding::LF),
    );
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Temporary files have mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(pem.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        // Somebody else was quicker: theirs is the key.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop).map_err(|error| error.error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_two_leaves_the_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev-key.pem");
        create_key_file(&path).unwrap();
        let first = fs::read(&path).unwrap();
        create_key_file(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    }
}
