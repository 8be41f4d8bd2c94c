use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};

use crate::{
    clock::now,
    error::{BoxError, Error},
};

/// A token is replaced this long before its end, or a fifth of its life before when that is less.
const MARGIN: Duration = Duration::from_secs(60);

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;
pub(crate) type Bearer = MetadataValue<Ascii>;

/// Where the bearer token (a JWT) of each call comes from.
///
/// The token is never shown: not by `Debug`, not in an [`Error`], and on the wire its header is
/// marked as sensitive, which keeps it out of HTTP/2's compression tables.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Fixed(Arc<str>),
    Provider(Arc<Provider>),
}

struct Provider {
    provide: Box<dyn Fn() -> TokenFuture + Send + Sync>,
    /// Locked while the provider is asked, so that calls at the same time ask it once.
    held: Mutex<Option<Held>>,
}

/// A token whose end is known.
struct Held {
    bearer: Bearer,
    renew_at: SystemTime,
    expires: SystemTime,
}

impl Held {
    fn new(bearer: Bearer, now: SystemTime, expires: SystemTime) -> Self {
        let life = expires.duration_since(now).unwrap_or_default();
        Self { bearer, renew_at: expires - MARGIN.min(life / 5), expires }
    }
}

impl TokenSource {
    /// Always the same token.
    pub fn fixed(token: impl Into<String>) -> Self {
        Self(Source::Fixed(token.into().into()))
    }

    /// Asks `provider` for a token at the first call, again when the token nears the end that its
    /// `exp` claim names (a minute before, or a fifth of its life when that is less), and once
    /// more when the server says that it has expired. A token that is no JWT with an `exp` is
    /// asked for before every call. Clones share the token.
    ///
    /// The end is compared with this device's clock; one that is wrong costs a call more.
    ///
    /// The provider runs within the call's deadline. Its error becomes [`Error::Token`], unless
    /// the token before is still good.
    ///
    /// ```
    /// # use keypool_client::TokenSource;
    /// # async fn sign_in() -> Result<String, std::io::Error> { Ok("eyJ...".into()) }
    /// let source = TokenSource::provider(|| async { Ok(sign_in().await?) });
    /// ```
    pub fn provider<F, Fut>(provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        let provide = Box::new(move || -> TokenFuture { Box::pin(provider()) });
        Self(Source::Provider(Arc::new(Provider { provide, held: Mutex::default() })))
    }

    /// The value of the `authorization` metadata for the next call.
    pub(crate) async fn authorization(&self) -> Result<Bearer, Error> {
        match &self.0 {
            Source::Fixed(token) => bearer(token),
            Source::Provider(provider) => provider.authorization().await,
        }
    }

    /// Forgets a token that the server calls expired. False when there can be no other.
    pub(crate) async fn renew(&self, expired: &Bearer) -> bool {
        let Source::Provider(provider) = &self.0 else { return false };
        // Unless another call has replaced it meanwhile.
        provider.held.lock().await.take_if(|held| held.bearer == *expired);
        true
    }
}

impl Provider {
    async fn authorization(&self) -> Result<Bearer, Error> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| now() < held.renew_at) {
            return Ok(held.bearer.clone());
        }
        match (self.provide)().await {
            Ok(token) => {
                let bearer = bearer(&token)?;
                *held = expiry(&token).map(|expires| Held::new(bearer.clone(), now(), expires));
                Ok(bearer)
            }
            Err(error) => match held.as_ref().filter(|held| now() < held.expires) {
                Some(held) => Ok(held.bearer.clone()),
                None => Err(Error::Token(error)),
            },
        }
    }
}

fn bearer(token: &str) -> Result<Bearer, Error> {
    let mut value = Bearer::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::Token("the token is not printable ASCII".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The `exp` claim of a JWT (RFC 7519, section 4.1.4). Nothing is verified: that is for the
/// server, and a wrong guess here costs one more call of the provider.
fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&payload).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp).ok()?)
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource(..)")
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        Self::fixed(token)
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        Self::fixed(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn the_end_of_a_token_is_its_exp_claim() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds));
        assert_eq!(expiry(&token(r#"{"sub":"bob","exp":1800000000}"#)), at(1.8e9));
        assert_eq!(expiry(&token(r#"{"exp":1800000000.5}"#)), at(1_800_000_000.5));
        for payload in [r#"{"exp":-1}"#, r#"{"exp":1e300}"#, r#"{"exp":"1"}"#, "{}", "no JSON"] {
            assert_eq!(expiry(&token(payload)), None, "{payload}");
        }
        for text in ["", "opaque", "a.b", "a.?.c", ".."] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_is_renewed_a_minute_before_its_end_or_a_fifth_of_its_life() {
        let expires = SystemTime::UNIX_EPOCH + YEAR;
        for (life, margin) in [(3600, 60), (300, 60), (100, 20), (5, 1), (0, 0)] {
            let now = expires - Duration::from_secs(life);
            let held = Held::new(Bearer::from_static("b"), now, expires);
            assert_eq!(held.renew_at, expires - Duration::from_secs(margin), "{life}");
        }
        let late = Held::new(Bearer::from_static("b"), expires + YEAR, expires);
        assert_eq!(late.renew_at, expires);
    }

    #[tokio::test]
    async fn the_token_before_is_used_while_it_is_good_and_the_provider_fails() {
        let source = TokenSource::provider(|| async { Err("the sign-in server is down".into()) });
        let Source::Provider(provider) = &source.0 else { unreachable!() };
        let past = SystemTime::UNIX_EPOCH;
        for (expires, good) in [(now() + YEAR, true), (now(), false)] {
            let held = Held { bearer: Bearer::from_static("b"), renew_at: past, expires };
            *provider.held.lock().await = Some(held);
            assert_eq!(source.authorization().await.is_ok(), good);
        }
    }
}
