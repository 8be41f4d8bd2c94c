//! Who calls: the bearer JWT (RFC 7519, RFC 6750) of a call, verified.

mod caller;
mod jwks;
mod keys;
mod trusted;
mod verified;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
pub use caller::{Caller, Scope, Scopes};
use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{decode_header, errors::ErrorKind};
pub use keys::{KeySet, VerifyingKey};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use trusted::{Current, TrustedKeys};
use verified::{Verified, VerifiedTokens};

use crate::{
    config::AuthSection,
    domain::{
        clock::Clock,
        error::Error,
        ids::{ClientId, ClientKey, UserId},
    },
    metrics::TokenFailure,
};

/// Why a token is refused that a key may have signed which keypool does not know yet.
const NO_KEY: &str = "no key for its algorithm and key id";

const BAD_SIGNATURE: &str = "the signature does not verify";
const OTHER_AUDIENCE: &str = "for another audience";
const OTHER_ISSUER: &str = "of another issuer";
const NOT_YET_VALID: &str = "not yet valid";

/// A longer `authorization` header is refused before anything is decoded.
const MAX_HEADER_BYTES: usize = 8 * 1024;

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
    keys: TrustedKeys,
    verified: VerifiedTokens,
    audience: String,
    issuer: Option<String>,
    leeway: i64,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Reads the key files that the configuration names. Keys that are fetched are there once
    /// [`Authenticator::keep_keys`] runs.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no usable public key.
    pub fn from_config(section: &AuthSection, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Ok(Self::with(TrustedKeys::load(section)?, section, clock))
    }

    /// With these keys and no others; those of the section are not read.
    pub fn new(keys: KeySet, section: &AuthSection, clock: Arc<dyn Clock>) -> Self {
        Self::with(TrustedKeys::fixed(keys), section, clock)
    }

    fn with(keys: TrustedKeys, section: &AuthSection, clock: Arc<dyn Clock>) -> Self {
        Self {
            keys,
            verified: VerifiedTokens::default(),
            audience: section.audience.clone(),
            issuer: section.issuer.clone(),
            leeway: i64::try_from(section.leeway.as_secs()).unwrap_or(i64::MAX),
            clock,
        }
    }

    /// Reads key files again when they change, and fetches keys, until told to stop.
    pub async fn keep_keys(&self, stop: CancellationToken) {
        self.keys.keep(stop).await;
    }

    /// Sets the gauges of the keys.
    pub fn measure(&self) {
        self.keys.measure();
    }

    /// The caller that the `authorization` header names. A token of an unknown key waits for the
    /// keys to be fetched again, if it is time for that.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn admit(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        match self.authenticate(headers) {
            Err(Error::TokenInvalid(NO_KEY) | Error::KeysUnavailable)
                if self.keys.refreshed().await =>
            {
                self.authenticate(headers)
            }
            answer => answer,
        }
    }

    /// The caller that the `authorization` header names, by the keys that are there.
    ///
    /// # Errors
    /// [`Error::TokenMissing`], [`Error::TokenInvalid`] or [`Error::TokenExpired`];
    /// [`Error::KeysUnavailable`] when the keys could not be fetched for too long. None of them
    /// repeats any part of the token.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        let token = bearer(headers)?;
        let keys = self.keys.current();
        if keys.is_outdated() {
            return self.verify(&keys, token).map(|verified| verified.caller);
        }
        let digest: [u8; 32] = match digest(&SHA256, token.as_bytes()).as_ref().try_into() {
            Ok(digest) => digest,
            Err(_) => return self.verify(&keys, token).map(|verified| verified.caller),
        };
        let now = self.clock.now().unix_timestamp();
        if let Some(caller) = self.verified.get(&digest, keys.generation, now) {
            return Ok(caller);
        }
        let verified = self.verify(&keys, token)?;
        self.verified.put(digest, keys.generation, verified.clone());
        Ok(verified.caller)
    }

    fn verify(&self, keys: &Current, token: &str) -> Result<Verified, Error> {
        let claims = signed(keys, token)?;
        let until = self.check(&claims)?;
        let user = claims.sub.ok_or(Error::TokenInvalid("no sub claim"))?;
        let client = claims.client_id.ok_or(Error::TokenInvalid("no client_id claim"))?;
        let caller = Caller {
            key: ClientKey {
                user: UserId::parse(user)
                    .map_err(|_| Error::TokenInvalid("the sub claim is no user id"))?,
                client: ClientId::parse(client)
                    .map_err(|_| Error::TokenInvalid("the client_id claim is no client id"))?,
            },
            scopes: Scopes::parse(claims.scope.as_deref().unwrap_or_default()),
        };
        Ok(Verified { caller, until })
    }

    /// When the token ends, in seconds since 1970, as this server sees it.
    fn check(&self, claims: &Claims) -> Result<i64, Error> {
        let audience = claims.aud.as_ref().ok_or(Error::TokenInvalid("no aud claim"))?;
        if !audience.names(&self.audience) {
            return Err(Error::TokenInvalid(OTHER_AUDIENCE));
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Error::TokenInvalid(OTHER_ISSUER));
        }
        let now = self.clock.now().unix_timestamp();
        let exp = claims.exp.as_ref().ok_or(Error::TokenInvalid("no exp claim"))?;
        let until = seconds(exp).saturating_add(self.leeway);
        if until <= now {
            return Err(Error::TokenExpired);
        }
        match &claims.nbf {
            Some(nbf) if seconds(nbf).saturating_sub(self.leeway) > now => {
                Err(Error::TokenInvalid(NOT_YET_VALID))
            }
            _ => Ok(until),
        }
    }
}

/// What a call whose token was refused counts as; none where the token is not the cause.
pub fn token_failure(error: &Error) -> Option<TokenFailure> {
    Some(match error {
        Error::TokenMissing => TokenFailure::Missing,
        Error::TokenExpired => TokenFailure::Expired,
        Error::KeysUnavailable => TokenFailure::KeysUnavailable,
        Error::TokenInvalid(reason) => match *reason {
            NO_KEY => TokenFailure::UnknownKey,
            BAD_SIGNATURE => TokenFailure::BadSignature,
            OTHER_AUDIENCE => TokenFailure::WrongAudience,
            OTHER_ISSUER => TokenFailure::WrongIssuer,
            NOT_YET_VALID => TokenFailure::NotYetValid,
            claim if claim.contains(" claim") => TokenFailure::BadClaim,
            _ => TokenFailure::Malformed,
        },
        _ => return None,
    })
}

/// The claims of a token that one of the keys signed.
fn signed(keys: &Current, token: &str) -> Result<Claims, Error> {
    let header = decode_header(token)
        .map_err(|_| Error::TokenInvalid("malformed, or of an unknown algorithm"))?;
    // No critical header is understood here (RFC 7515, section 4.1.11).
    if header.crit.is_some() {
        return Err(Error::TokenInvalid("a critical header is not supported"));
    }
    let mut reason = NO_KEY;
    for key in keys.candidates(&header) {
        match key.verify(token) {
            Ok(claims) => return Ok(claims),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                reason = BAD_SIGNATURE;
            }
            Err(_) => return Err(Error::TokenInvalid("malformed, or a claim of a wrong type")),
        }
    }
    // Its key may be among those that are out of reach.
    if keys.is_outdated() {
        return Err(Error::KeysUnavailable);
    }
    Err(Error::TokenInvalid(reason))
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
