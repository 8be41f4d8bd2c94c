//! Who calls: the bearer JWT (RFC 7519, RFC 6750) of a call, verified.

mod keys;

use std::{fmt, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{decode_header, errors::ErrorKind};
pub use keys::{KeySet, VerifyingKey};
use serde::Deserialize;

use crate::{
    config::AuthSection,
    domain::{
        clock::Clock,
        error::Error,
        ids::{ClientId, ClientKey, UserId},
    },
};

/// A longer `authorization` header is refused before anything is decoded.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Upload, and look after one's own pool.
    Publish,
    /// Reserve, spend and release the packages of others.
    Reserve,
    /// Read the events of every pool.
    Audit,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Publish, Self::Reserve, Self::Audit];

    /// The name in the `scope` claim.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "keypool.publish",
            Self::Reserve => "keypool.reserve",
            Self::Audit => "keypool.audit",
        }
    }

    /// The scope of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scopes of a token. Those of other services are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// From a `scope` claim: names separated by spaces (RFC 8693, section 4.2).
    fn parse(claim: &str) -> Self {
        Self(Scope::ALL.into_iter().filter(|s| claim.split(' ').any(|n| n == s.as_str())).collect())
    }

    /// Whether `scope` is among them.
    pub fn contains(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }
}

/// Who calls, as the token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The calling client and its user.
    pub key: ClientKey,
    /// What it may do.
    pub scopes: Scopes,
}

impl Caller {
    /// Passes a caller that has `scope`.
    ///
    /// # Errors
    /// [`Error::ScopeMissing`].
    pub fn require(&self, scope: Scope) -> Result<(), Error> {
        self.scopes.contains(scope).then_some(()).ok_or(Error::ScopeMissing(scope.as_str()))
    }
}

/// The claims that matter here (RFC 7519, section 4.1). A claim that is there twice, or has
/// another type, fails the whole token.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    client_id: Option<String>,
    scope: Option<String>,
    aud: Option<Audience>,
    iss: Option<String>,
    exp: Option<serde_json::Number>,
    nbf: Option<serde_json::Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn names(&self, wanted: &str) -> bool {
        match self {
            Self::One(name) => name == wanted,
            Self::Many(names) => names.iter().any(|name| name == wanted),
        }
    }
}

/// Verifies bearer tokens: EdDSA, ES256 and RS256, by configured public keys only.
///
/// An algorithm belongs to a key. The header of a token only picks among the keys; it can
/// neither bring a key nor make one serve another algorithm (RFC 8725, section 3.1).
#[derive(Debug)]
pub struct Authenticator {
    keys: KeySet,
    audience: String,
    issuer: Option<String>,
    leeway: i64,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Reads the key files that the configuration names.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no usable public key.
    pub fn from_config(section: &AuthSection, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Ok(Self::new(KeySet::load(&section.keys)?, section, clock))
    }

    /// With these keys; those of the section are not read.
    pub fn new(keys: KeySet, section: &AuthSection, clock: Arc<dyn Clock>) -> Self {
        Self {
            keys,
            audience: section.audience.clone(),
            issuer: section.issuer.clone(),
            leeway: i64::try_from(section.leeway.as_secs()).unwrap_or(i64::MAX),
            clock,
        }
    }

    /// The caller that the `authorization` header names.
    ///
    /// # Errors
    /// [`Error::TokenMissing`], [`Error::TokenInvalid`] or [`Error::TokenExpired`]. None of them
    /// repeats any part of the token.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        let claims = self.verify(bearer(headers)?)?;
        self.check(&claims)?;
        let user = claims.sub.ok_or(Error::TokenInvalid("no sub claim"))?;
        let client = claims.client_id.ok_or(Error::TokenInvalid("no client_id claim"))?;
        Ok(Caller {
            key: ClientKey {
                user: UserId::parse(user)
                    .map_err(|_| Error::TokenInvalid("the sub claim is no user id"))?,
                client: ClientId::parse(client)
                    .map_err(|_| Error::TokenInvalid("the client_id claim is no client id"))?,
            },
            scopes: Scopes::parse(claims.scope.as_deref().unwrap_or_default()),
        })
    }

    fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = decode_header(token)
            .map_err(|_| Error::TokenInvalid("malformed, or of an unknown algorithm"))?;
        // No critical header is understood here (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(Error::TokenInvalid("a critical header is not supported"));
        }
        let mut reason = "no key for its algorithm and key id";
        for key in self.keys.candidates(&header) {
            match key.verify(token) {
                Ok(claims) => return Ok(claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                    reason = "the signature does not verify";
                }
                Err(_) => return Err(Error::TokenInvalid("malformed, or a claim of a wrong type")),
            }
        }
        Err(Error::TokenInvalid(reason))
    }

    fn check(&self, claims: &Claims) -> Result<(), Error> {
        let audience = claims.aud.as_ref().ok_or(Error::TokenInvalid("no aud claim"))?;
        if !audience.names(&self.audience) {
            return Err(Error::TokenInvalid("for another audience"));
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Error::TokenInvalid("of another issuer"));
        }
        let now = self.clock.now().unix_timestamp();
        let exp = claims.exp.as_ref().ok_or(Error::TokenInvalid("no exp claim"))?;
        if seconds(exp).saturating_add(self.leeway) <= now {
            return Err(Error::TokenExpired);
        }
        match &claims.nbf {
            Some(nbf) if seconds(nbf).saturating_sub(self.leeway) > now => {
                Err(Error::TokenInvalid("not yet valid"))
            }
            _ => Ok(()),
        }
    }
}

/// A NumericDate (RFC 7519, section 2) in whole seconds, which it may hold fractions of.
fn seconds(date: &serde_json::Number) -> i64 {
    // The cast of a float saturates, and JSON has no NaN.
    date.as_i64().unwrap_or_else(|| date.as_f64().map_or(i64::MAX, |date| date as i64))
}

/// The token of the one `authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Error::TokenMissing)?;
    if values.next().is_some() {
        return Err(Error::TokenInvalid("more than one authorization header"));
    }
    if value.len() > MAX_HEADER_BYTES {
        return Err(Error::TokenInvalid("longer than 8 KiB"));
    }
    let value = value.to_str().map_err(|_| Error::TokenInvalid("malformed"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => {
            Ok(token)
        }
        _ => Err(Error::TokenMissing),
    }
}
