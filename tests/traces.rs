//! Calls are part of their callers' traces, which a collector gets and which tell of nobody.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use keypool_client::{Client, Reserve};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    server::{ConfigFile, Server, ServerOptions},
    tls::Ca,
    tokens::token,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::ServerTlsConfig};

const SERVICE: &str = "keypool.v1.KeyPackageService";
const SUITE: u16 = 1;
const PARENT: [u8; 8] = [0x22; 8];

/// A collector that keeps what it gets.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|it| it.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        Self::on(tonic::transport::Server::builder()).await
    }

    /// One that a certificate of this CA vouches for.
    async fn with_tls(ca: &Ca) -> (Self, SocketAddr) {
        let tls = ServerTlsConfig::new().identity(ca.server("localhost"));
        Self::on(tonic::transport::Server::builder().tls_config(tls).unwrap()).await
    }

    async fn on(mut server: tonic::transport::Server) -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let serving = server.add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    /// The spans of a trace.
    fn of(&self, trace: u8) -> Vec<Span> {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|span| span.trace_id == [trace; 16]).cloned().collect()
    }
}

/// As a caller whose trace has this number, sampled or not, sends it.
fn traceparent(trace: u8, sampled: bool) -> String {
    let trace = format!("{trace:02x}").repeat(16);
    let parent = "22".repeat(8);
    format!("00-{trace}-{parent}-0{}", u8::from(sampled))
}

async fn caller(server: &Server, trace: u8, sampled: bool) -> Client {
    let builder = Client::builder(server.uri(), token("bob", "phone")).retries(0);
    builder.trace_context(move || Some(traceparent(trace, sampled))).connect().await.unwrap()
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|it| it.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test]
async fn calls_join_their_callers_traces() {
    let (collector, address) = Collector::start().await;
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default()
        .text("traces.endpoint", format!("http://{address}"))
        .set("traces.sample_ratio", "0.0")
        // What is logged decides nothing about what is traced.
        .text("log.filter", "keypool_service=info");
    let mut server = Server::start(&database, &options).await;
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    let package = Forge::new(SUITE, "bob").valid_around(now).build();
    caller(&server, 0x51, true).await.upload([package]).await.unwrap();
    let nobody = Reserve::new(&b"a group"[..], SUITE).target_clients("nobody", ["phone"]);
    caller(&server, 0x52, true).await.reserve(&nobody).await.unwrap_err();
    caller(&server, 0x53, false).await.pool_status().await.unwrap();
    server.client("bob", "phone").await.pool_status().await.unwrap();
    // What is left is sent as the server ends.
    server.signal("TERM");
    assert!(server.ended().await.success());

    let [upload] = &collector.of(0x51)[..] else { panic!("{collector:?}") };
    assert_eq!(upload.name, format!("{SERVICE}/UploadKeyPackages"));
    assert_eq!(upload.parent_span_id, PARENT);
    assert_eq!(upload.kind, i32::from(SpanKind::Server));
    assert_eq!(attribute(&upload.attributes, "rpc.method"), Some(&*upload.name));
    assert!(attribute(&upload.attributes, "request_id").is_some());

    let [reserve] = &collector.of(0x52)[..] else { panic!("{collector:?}") };
    assert_eq!(reserve.status.as_ref().unwrap().code, i32::from(StatusCode::Error));
    assert_eq!(attribute(&reserve.attributes, "error.type"), Some("POOL_EXHAUSTED"));
    let code = attribute(&reserve.attributes, "rpc.response.status_code");
    assert_eq!(code, Some("FAILED_PRECONDITION"));

    let all = collector.0.lock().unwrap();
    assert_eq!(all.len(), 2, "none that its caller or the ratio left out");
    let text = format!("{all:?}");
    for secret in ["bob", "nobody", "phone", "a group", &token("bob", "phone")[..20]] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

/// A server that traces every call, sends them to this URL, and has answered one and ended.
async fn traced_one_call(endpoint: &str, ca: &Path) {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default()
        .text("traces.endpoint", endpoint)
        .text("traces.ca", ca.to_str().unwrap());
    let mut server = Server::start(&database, &options).await;
    caller(&server, 0x51, true).await.pool_status().await.unwrap();
    server.signal("TERM");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_collector_with_tls_is_believed_if_its_ca_is_the_one_that_was_named() {
    let (own, other) = (Ca::new(), Ca::new());
    let (collector, address) = Collector::with_tls(&own).await;
    let endpoint = format!("https://localhost:{}", address.port());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    fs::write(&file, &other.pem).unwrap();
    traced_one_call(&endpoint, &file).await;
    assert_eq!(collector.of(0x51), []);
    fs::write(&file, &own.pem).unwrap();
    traced_one_call(&endpoint, &file).await;
    assert_eq!(collector.of(0x51).len(), 1);
}

#[tokio::test]
async fn a_file_of_cas_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    let options = ServerOptions::default()
        .text("traces.endpoint", "https://localhost:4317")
        .text("traces.ca", file.to_str().unwrap());
    let config = ConfigFile::new("postgres://127.0.0.1:1/keypool", &options);
    for (text, reason) in [
        (None, "No such file"),
        (Some(""), "it holds no certificate"),
        (Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"), "it is no PEM file"),
    ] {
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let serve = String::from_utf8(config.run("serve").await.stderr).unwrap();
        let expected = format!("keypool: traces.ca: {}: {reason}", file.display());
        assert!(serve.starts_with(&expected), "{serve}");
        let check = String::from_utf8(config.run("check").await.stdout).unwrap();
        assert!(check.contains(&format!("traces.ca: {}: {reason}", file.display())), "{check}");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_fails_no_call() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default()
        .text("traces.endpoint", "http://127.0.0.1:1")
        .set("traces.sample_ratio", "1.0");
    let mut server = Server::start(&database, &options).await;
    caller(&server, 0x51, true).await.pool_status().await.unwrap();
    server.signal("TERM");
    assert!(server.ended().await.success());
}
