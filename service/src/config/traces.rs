//! `[traces]`.

use std::path::PathBuf;

use http::{Uri, uri::Scheme};

use super::source::Source;

/// `[traces]`: where traces of calls are sent.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesSection {
    /// `endpoint`: an OpenTelemetry collector that speaks OTLP over gRPC, with TLS where it is an
    /// https URL. None by default.
    pub endpoint: Option<Uri>,
    /// `ca`: a PEM file with the CAs of the collector, instead of those that browsers trust.
    pub ca: Option<PathBuf>,
    /// `sample_ratio`: how many of the calls are traced whose callers did not decide. Default 0.01.
    pub sample_ratio: f64,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self { endpoint: None, ca: None, sample_ratio: 0.01 }
    }
}

impl TracesSection {
    /// Whether the collector is reached by TLS.
    pub fn is_tls(&self) -> bool {
        self.endpoint.as_ref().is_some_and(is_https)
    }

    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        let endpoint = source.read("traces.endpoint", |given| {
            let message = "must be a URL, as in \"http://collector:4317\"";
            let uri: Uri = given.text()?.parse().map_err(|_| message)?;
            let known = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme());
            if known && uri.host().is_some() { Ok(uri) } else { Err(message.into()) }
        });
        let ca = source.read("traces.ca", |given| given.text().map(PathBuf::from));
        if ca.is_some() && !endpoint.as_ref().is_some_and(is_https) {
            source.report("traces.ca", "needs a traces.endpoint with https");
        }
        Self {
            endpoint,
            ca,
            sample_ratio: source
                .read("traces.sample_ratio", |given| {
                    let ratio = given.float()?;
                    let good = (0.0..=1.0).contains(&ratio);
                    if good { Ok(ratio) } else { Err("must be 0.0 to 1.0".into()) }
                })
                .unwrap_or(default.sample_ratio),
        }
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}
