//! Who gets in: asked of every call before its message is read.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::{
    auth::{Authenticator, token_failure},
    limit::Limits,
    service::refuse,
};
use crate::{domain::error::Error, metrics::metrics};

/// Lets calls in whose token is good, and whose caller is within its limits, while the server is not
/// about to stop, and tells the service behind it who calls.
#[derive(Debug, Clone)]
pub struct Admit<S> {
    inner: S,
    authenticator: Arc<Authenticator>,
    limits: Arc<Limits>,
    stop: CancellationToken,
}

impl<S> Admit<S> {
    /// Guards `inner`; `stop` turns all calls away.
    pub fn new(
        inner: S,
        authenticator: Arc<Authenticator>,
        limits: Arc<Limits>,
        stop: CancellationToken,
    ) -> Self {
        Self { inner, authenticator, limits, stop }
    }
}

impl<S: NamedService> NamedService for Admit<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Admit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A clone that was not asked whether it is ready stays behind.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (authenticator, limits) = (self.authenticator.clone(), self.limits.clone());
        let stop = self.stop.clone();
        Box::pin(async move {
            let caller = match stop.is_cancelled() {
                true => Err(Error::ShuttingDown),
                false => authenticator.admit(request.headers()).await,
            };
            let knocked = caller.and_then(|caller| {
                let (request, held) = limits.knock(&caller, request)?;
                Ok((caller, request, held))
            });
            match knocked {
                Ok((caller, mut request, _held)) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(error) => {
                    if let Some(kind) = token_failure(&error) {
                        metrics().token_failures.count(kind);
                    }
                    Ok(refuse(&error).into_http())
                }
            }
        })
    }
}
