//! `[traces]`.

use http::Uri;

use super::source::Source;

/// `[traces]`: where traces of calls are sent.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesSection {
    /// `endpoint`: an OpenTelemetry collector that speaks OTLP over gRPC. None by default.
    pub endpoint: Option<String>,
    /// `sample_ratio`: how many of the calls are traced whose callers did not decide. Default 0.01.
    pub sample_ratio: f64,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 0.01 }
    }
}

impl TracesSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            endpoint: source.read("traces.endpoint", |given| {
                let endpoint = given.text()?;
                let uri: Result<Uri, _> = endpoint.parse();
                let good =
                    uri.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
                let message = "must be a URL, as in \"http://collector:4317\"";
                if good { Ok(endpoint) } else { Err(message.into()) }
            }),
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
