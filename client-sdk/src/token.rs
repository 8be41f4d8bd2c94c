use std::{fmt, future::Future, pin::Pin, sync::Arc};

use tonic::metadata::{Ascii, MetadataValue};

use crate::error::{BoxError, Error};

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;

/// Where the bearer token (a JWT) of each call comes from.
///
/// The token is never shown: not by `Debug`, not in an [`Error`], and on the wire its header is
/// marked as sensitive, which keeps it out of HTTP/2's compression tables.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Fixed(Arc<str>),
    Provider(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
}

impl TokenSource {
    /// Always the same token.
    pub fn fixed(token: impl Into<String>) -> Self {
        Self(Source::Fixed(token.into().into()))
    }

    /// Asks `provider` before every call, within the call's deadline. Caching a token until it
    /// nears its end is the provider's business. Its error becomes [`Error::Token`].
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
        Self(Source::Provider(Arc::new(move || Box::pin(provider()))))
    }

    /// The value of the `authorization` metadata for the next call.
    pub(crate) async fn authorization(&self) -> Result<MetadataValue<Ascii>, Error> {
        let value = match &self.0 {
            Source::Fixed(token) => format!("Bearer {token}"),
            Source::Provider(provider) => {
                format!("Bearer {}", provider().await.map_err(Error::Token)?)
            }
        };
        let mut value = MetadataValue::<Ascii>::try_from(value)
            .map_err(|_| Error::Token("the token is not printable ASCII".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }
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
