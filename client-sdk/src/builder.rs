use std::{net::SocketAddr, sync::Arc, time::Duration};

use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    Client, Error, Tls, TokenSource,
    endpoints::{Endpoints, Node},
    resolve,
    retry::Budget,
    tls,
    transport::{TraceContext, Transport},
};

const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_CONNECT: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 5;

/// How a [`Client`] connects.
#[derive(Debug, Clone)]
#[must_use = "a Builder does nothing until it connects"]
pub struct Builder {
    uris: Vec<String>,
    token: TokenSource,
    tls: Option<Tls>,
    deadline: Duration,
    retries: u32,
    keepalive: (Duration, Duration),
    resolve_every: Option<Duration>,
    trace_context: Option<TraceContext>,
}

impl Builder {
    pub(crate) fn new(uri: String, token: TokenSource) -> Self {
        Self {
            uris: vec![uri],
            token,
            tls: None,
            deadline: DEFAULT_DEADLINE,
            retries: DEFAULT_RETRIES,
            keepalive: (Duration::from_secs(30), Duration::from_secs(10)),
            resolve_every: None,
            trace_context: None,
        }
    }

    /// Adds another replica of the same service. Calls go round those that answer; while one
    /// does, a dead one fails no call.
    pub fn endpoint(mut self, uri: impl Into<String>) -> Self {
        self.uris.push(uri.into());
        self
    }

    /// Looks the hosts of the addresses up, now and again after each interval (at least a second),
    /// and goes round all that is found, as for a headless service. Otherwise a host is looked up
    /// when a connection is made, and one address is used.
    pub fn resolve_every(mut self, interval: Duration) -> Self {
        self.resolve_every = Some(interval.max(Duration::from_secs(1)));
        self
    }

    /// What to trust and to show when the address is `https://`; [`Tls::native_roots`] unless
    /// set. When set, every address has to be.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long making the connection, and each call with its retries, may take: 10 s unless set,
    /// at most a day.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// How often a call is repeated within its deadline, with pauses, when that may help: 5 times
    /// unless set. Going on to another replica or a newer token is not counted; nor is an outage of
    /// the database that the service tells of, which is waited out up to the deadline unless this
    /// is 0. Clones of a client share a budget, too: while most of their calls fail, none is
    /// repeated.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Calls carry what `context` answers, asked anew for each try, as `traceparent` (W3C Trace
    /// Context), so that the server's spans are part of the application's trace: as of its current
    /// OpenTelemetry span, or of none.
    pub fn trace_context(
        mut self,
        context: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.trace_context = Some(TraceContext(Arc::new(context)));
        self
    }

    /// When a connection with a call on it is silent for `interval` (30 s unless set) it is
    /// probed, and given up when there is no answer within `timeout` (10 s unless set).
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive = (interval, timeout);
        self
    }

    /// Connects now.
    ///
    /// # Errors
    /// [`Error::Config`] when an address or the TLS settings will not do, [`Error::Transport`]
    /// when no address can be reached, [`Error::DeadlineExceeded`].
    pub async fn connect(self) -> Result<Client, Error> {
        let names = self.names()?;
        let connecting = async {
            let (place, channel) = first_to_connect(&names).await?;
            let endpoints = endpoints(&names, |name| {
                if name.place == place { channel.clone() } else { name.channel() }
            });
            if self.resolve_every.is_some() {
                resolve::look_up(&endpoints, &names).await;
            }
            Ok(endpoints)
        };
        let connected = tokio::time::timeout(self.deadline, connecting).await;
        let endpoints = connected.unwrap_or(Err(Error::DeadlineExceeded))?;
        Ok(self.client(names, endpoints))
    }

    /// Connects at the first call, and so also while the server is not up yet.
    ///
    /// # Errors
    /// [`Error::Config`] when an address or the TLS settings will not do, or outside of a Tokio
    /// runtime.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        let names = self.names()?;
        tokio::runtime::Handle::try_current()
            .map_err(|_| Error::Config("a client needs a Tokio runtime".into()))?;
        let endpoints = endpoints(&names, Name::channel);
        Ok(self.client(names, endpoints))
    }

    fn client(self, names: Vec<Name>, endpoints: Endpoints) -> Client {
        let endpoints = Arc::new(endpoints);
        if let Some(every) = self.resolve_every {
            tokio::spawn(resolve::follow(Arc::downgrade(&endpoints), names, every));
        }
        Client::new(Transport {
            endpoints,
            token: self.token,
            deadline: self.deadline,
            retries: self.retries,
            budget: Arc::new(Budget::full()),
            trace_context: self.trace_context,
        })
    }

    pub(crate) fn names(&self) -> Result<Vec<Name>, Error> {
        let uris = self.uris.iter().enumerate();
        uris.map(|(place, uri)| Name::parse(place, uri, self)).collect()
    }

    fn endpoint_of(&self, uri: Uri, tls: Option<&Tls>) -> Result<Endpoint, Error> {
        let (interval, timeout) = self.keepalive;
        let endpoint = Endpoint::from(uri)
            .user_agent(concat!("keypool-client/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Error::Config(error.to_string()))?
            .connect_timeout(self.deadline.min(LONGEST_CONNECT))
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout);
        let Some(tls) = tls else { return Ok(endpoint) };
        endpoint.tls_config(tls.config()?).map_err(|error| Error::Config(tls::chain(&error)))
    }
}

async fn first_to_connect(names: &[Name]) -> Result<(usize, Channel), Error> {
    let mut failure = Error::Config("there is no address".into());
    for name in names {
        match name.endpoint.connect().await {
            Ok(channel) => return Ok((name.place, channel)),
            Err(error) => failure = Error::Transport(error.into()),
        }
    }
    Err(failure)
}

fn endpoints(names: &[Name], channel: impl Fn(&Name) -> Channel) -> Endpoints {
    Endpoints::new(names.iter().map(|name| Node::new(name.place, None, channel(name))).collect())
}

/// An address of the service as the application gave it.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    /// Its place in the list.
    pub(crate) place: usize,
    uri: Uri,
    endpoint: Endpoint,
    /// What endpoints at single addresses are made with.
    builder: Builder,
}

impl Name {
    fn parse(place: usize, uri: &str, builder: &Builder) -> Result<Self, Error> {
        let uri = Uri::try_from(uri)
            .map_err(|_| Error::Config("the server's address is not a URI".into()))?;
        let tls = match uri.scheme_str() {
            Some("https") => Some(builder.tls.clone().unwrap_or_default()),
            Some("http") if builder.tls.is_none() => None,
            Some("http") => return Err(Error::Config("with TLS an address is https://".into())),
            _ => return Err(Error::Config("an address begins with http:// or https://".into())),
        };
        let endpoint = builder.endpoint_of(uri.clone(), tls.as_ref())?;
        // At single addresses the certificate still has to name the host.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let builder = Builder { tls: tls.map(|tls| tls.or_server_name(host)), ..builder.clone() };
        Ok(Self { place, uri, endpoint, builder })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// `host:port`, to look up.
    pub(crate) fn host_and_port(&self) -> String {
        let default = if self.builder.tls.is_some() { 443 } else { 80 };
        let port = self.uri.port_u16().unwrap_or(default);
        format!("{}:{port}", self.uri.host().unwrap_or_default())
    }

    /// The endpoint at one address of the host.
    pub(crate) fn endpoint_at(&self, address: SocketAddr) -> Result<Endpoint, Error> {
        let scheme = if self.builder.tls.is_some() { "https" } else { "http" };
        let uri = Uri::try_from(format!("{scheme}://{address}"))
            .map_err(|error| Error::Config(error.to_string()))?;
        let endpoint = self.builder.endpoint_of(uri, self.builder.tls.as_ref())?;
        Ok(endpoint.origin(self.uri.clone()))
    }
}
