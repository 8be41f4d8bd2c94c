use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Request, Response, Status};

use crate::{
    Error, TokenSource,
    endpoints::{Endpoints, Grpc},
    retry::{Budget, Remedy, pause, pause_as_asked},
    token::Bearer,
};

/// Tells of which trace a call is part.
#[derive(Clone)]
pub(crate) struct TraceContext(pub(crate) Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TraceContext")
    }
}

/// How calls reach the service: token, deadline, retries, and the choice of a replica.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) token: TokenSource,
    pub(crate) deadline: Duration,
    pub(crate) retries: u32,
    pub(crate) budget: Arc<Budget>,
    pub(crate) trace_context: Option<TraceContext>,
}

impl Transport {
    /// One call with one answer. It is repeated as it is, so it must be safe to repeat; by the
    /// contract every one is.
    pub(crate) async fn call<Q: Clone, A, F>(
        &self,
        message: Q,
        send: impl Fn(Grpc, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let end = Instant::now() + self.deadline;
        let send = |grpc, mut request: Request<Q>| {
            request.set_timeout(end - Instant::now()); // tells the server; zero when it is over
            send(grpc, request)
        };
        let (answer, _) = self.attempts(end, message, send).await?;
        Ok(answer)
    }

    /// Opens a stream; the deadline is for opening it. Answers with the token it was opened with.
    pub(crate) async fn open<Q: Clone, A, F>(
        &self,
        message: Q,
        send: impl Fn(Grpc, Request<Q>) -> F,
    ) -> Result<(A, Bearer), Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.attempts(Instant::now() + self.deadline, message, send).await
    }

    async fn attempts<Q: Clone, A, F>(
        &self,
        end: Instant,
        message: Q,
        send: impl Fn(Grpc, Request<Q>) -> F,
    ) -> Result<(A, Bearer), Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let attempts = async {
            let mut route = self.endpoints.route(Instant::now()).peekable();
            let (mut retries, mut renewed) = (0, false);
            loop {
                let bearer = self.token.authorization().await?;
                let Some(node) = route.next() else {
                    return Err(Error::Config("the service has no address".into()));
                };
                let mut request = Request::new(message.clone());
                request.metadata_mut().insert("authorization", bearer.clone());
                let parent = self.trace_context.as_ref().and_then(|context| (context.0)());
                // What is no header is no trace context either.
                if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
                    request.metadata_mut().insert("traceparent", parent);
                }
                // A replica that is silent leaves time for another one; otherwise the deadline,
                // which is kept below, comes first.
                let now = Instant::now();
                let other_lives = route.peek().is_some_and(|other| other.out_until(now).is_none());
                let left = end - now;
                let limit = if other_lives { left / 2 } else { left * 2 };
                let Ok(answer) = timeout(limit, send(node.grpc(), request)).await else {
                    node.failed(Instant::now());
                    continue;
                };
                let error = match answer {
                    Ok(answer) => {
                        node.answered();
                        self.budget.succeeded();
                        return Ok((answer.into_inner(), bearer));
                    }
                    Err(status) => Error::from(status),
                };
                match Remedy::of(&error) {
                    Remedy::None => return Err(error),
                    Remedy::NewToken => {
                        if renewed || !self.token.renew(&bearer).await {
                            return Err(error);
                        }
                        renewed = true;
                        route = self.endpoints.route(Instant::now()).peekable();
                        continue;
                    }
                    Remedy::Elsewhere => {
                        node.failed(Instant::now());
                        if route.peek().is_some() {
                            continue;
                        }
                    }
                    Remedy::Later => {}
                    // An outage of the database that the server tells of. Who comes back when asked
                    // is no burden, so neither budget nor count ends it before the deadline; not
                    // to repeat at all is the caller's choice.
                    Remedy::WhenAsked if self.retries > 0 => {
                        let pause = pause_as_asked(error.retry_after());
                        if pause >= end - Instant::now() {
                            return Err(error);
                        }
                        sleep(pause).await;
                        route = self.endpoints.route(Instant::now()).peekable();
                        continue;
                    }
                    Remedy::WhenAsked => return Err(error),
                }
                let pause = pause(retries, error.retry_after());
                // Asked last, as it counts the failure.
                if retries >= self.retries || pause >= end - Instant::now() || !self.budget.failed()
                {
                    return Err(error);
                }
                retries += 1;
                sleep(pause).await;
                route = self.endpoints.route(Instant::now()).peekable();
            }
        };
        timeout_at(end, attempts).await.unwrap_or(Err(Error::DeadlineExceeded))
    }
}
