//! Traces of calls, sent to an OpenTelemetry collector. Where none is configured nothing is done.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Status, TracerProvider as _},
};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, registry::LookupSpan};
use webpki::anchor_from_trusted_cert;

use crate::{certificates, config::TracesSection};

/// The name of the spans that are sent; no other leaves the process.
const CALL: &str = "call";

/// A collector that is silent loses spans and delays nothing but the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

static ON: AtomicBool = AtomicBool::new(false);

/// Where traces go.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// To the collector of the configuration, if it names one. Called on a runtime; connects when
    /// there is something to send.
    ///
    /// # Errors
    /// An endpoint that cannot be used; a file of CAs that is none.
    pub fn start(section: &TracesSection) -> anyhow::Result<Option<Self>> {
        let Some(endpoint) = &section.endpoint else { return Ok(None) };
        let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint.to_string());
        if let Some(tls) = tls(section).context("traces.ca")? {
            exporter = exporter.with_tls_config(tls);
        }
        let exporter = exporter.with_timeout(EXPORT_TIMEOUT).build();
        let exporter = exporter.context("traces.endpoint")?;
        let resource = Resource::builder()
            .with_service_name("keypool")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        // A caller's decision holds; else so many of the calls are chosen.
        let own = Sampler::TraceIdRatioBased(section.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(own)))
            .with_resource(resource.build())
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self { provider }))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.provider.tracer("keypool");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // Neither threads nor places in the source are anyone's concern there.
            .with_threads(false)
            .with_location(false)
            .with_tracked_inactivity(false)
            // Asked anew for each span: what a filter answered to `tracing::enabled!`, as sqlx asks
            // it, would else stand for the next span of the thread.
            .with_filter(dynamic_filter_fn(|it, _| it.is_span() && it.name() == CALL))
    }

    /// Sends what is left.
    pub fn finish(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Whom to believe that it is the collector, where it is reached by TLS.
///
/// # Errors
/// A file of CAs that is none.
pub(crate) fn tls(section: &TracesSection) -> anyhow::Result<Option<ClientTlsConfig>> {
    let tls = ClientTlsConfig::new();
    match &section.ca {
        _ if !section.is_tls() => Ok(None),
        None => Ok(Some(tls.trust_anchors(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()))),
        Some(path) => {
            let certificates = certificates::in_file(path)?;
            let anchors =
                certificates.iter().map(|it| Ok(anchor_from_trusted_cert(it)?.to_owned()));
            let anchors: Result<Vec<_>, webpki::Error> = anchors.collect();
            Ok(Some(tls.trust_anchors(anchors.with_context(|| path.display().to_string())?)))
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Whether traces are sent.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The span of a call of this method, part of the trace that the call's headers name (W3C Trace
/// Context). For a server that sends traces.
pub fn call(method: &str, request_id: Option<&str>, headers: &HeaderMap) -> Span {
    let span =
        tracing::info_span!("call", otel.name = method, otel.kind = "server", method, request_id);
    // Only a span that was entered before could not be moved.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
    span.set_attribute("rpc.system.name", "grpc");
    span.set_attribute("rpc.method", method.to_owned());
    span
}

/// Tells the span of this call how it failed, where traces are sent.
pub fn failed(code: &'static str, reason: &'static str) {
    if !is_on() {
        return;
    }
    let span = Span::current();
    span.set_attribute("rpc.response.status_code", code);
    span.set_attribute("error.type", reason);
    span.set_status(Status::error(reason));
}
