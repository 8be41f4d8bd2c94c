//! Calls: how many, how long, and how they ended.

use std::{
    collections::HashMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use keypool_proto::FILE_DESCRIPTOR_SET;
use metrics::{Histogram, counter, gauge, histogram};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::{InFlight, families::Present, metrics};

/// The label of what the contract does not name.
const OTHER: &str = "_OTHER";
const SYSTEM: (&str, &str) = ("rpc_system_name", "grpc");

/// The names of gRPC's codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;

/// The calls of each method of the contract.
#[derive(Debug)]
pub struct Calls {
    /// By path, as in `/keypool.v1.KeyPackageService/SpendKeyPackages`.
    methods: HashMap<String, Method>,
    other: Method,
}

#[derive(Debug)]
struct Method {
    name: String,
    /// Whether its answer is a stream.
    streams: bool,
    active: InFlight,
    /// By code; there once a call ended with it.
    durations: [OnceLock<Histogram>; CODES.len()],
}

impl Method {
    fn new(name: String, streams: bool) -> Self {
        let active = InFlight(gauge!("rpc_server_active_requests", "rpc_method" => name.clone()));
        let method = Self { name, streams, active, durations: Default::default() };
        method.duration(0);
        method
    }

    fn count_error(&self, code: usize, reason: &str) {
        let code = CODES.get(code).copied().unwrap_or(CODES[UNKNOWN]);
        let (method, reason) = (self.name.clone(), reason.to_owned());
        metrics().with(|| {
            counter!("keypool_rpc_errors_total", "rpc_method" => method,
                     "rpc_response_status_code" => code, "reason" => reason)
            .increment(1);
        });
    }

    fn duration(&self, code: usize) -> Option<&Histogram> {
        let name = *CODES.get(code)?;
        let register = || {
            let method = self.name.clone();
            histogram!("rpc_server_call_duration_seconds", "rpc_method" => method,
                       "rpc_response_status_code" => name, SYSTEM.0 => SYSTEM.1)
        };
        Some(self.durations.get(code)?.get_or_init(register))
    }
}

impl Default for Calls {
    fn default() -> Self {
        // What the build has put in does decode.
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    methods
                        .insert(format!("/{name}"), Method::new(name, method.server_streaming()));
                }
            }
        }
        Self { methods, other: Method::new(OTHER.into(), false) }
    }
}

/// The name of a code of gRPC.
pub fn code_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| CODES.get(code)).copied().unwrap_or(CODES[UNKNOWN])
}

impl Calls {
    /// The name of the method at a path, as labels have it.
    pub fn method(&self, path: &str) -> &str {
        &self.methods.get(path).unwrap_or(&self.other).name
    }

    /// A call of the method at this path begins.
    pub fn begin(&'static self, path: &str) -> Call {
        let method = self.methods.get(path).unwrap_or(&self.other);
        Call { method, began: Instant::now(), ended: false, _active: method.active.begin() }
    }
}

/// A call that was not answered yet. Dropped, it was cancelled.
#[derive(Debug)]
pub struct Call {
    method: &'static Method,
    began: Instant,
    ended: bool,
    _active: Present,
}

impl Call {
    /// It was answered with this code. A stream goes on from there.
    pub fn answered(mut self, code: i32) -> Option<OpenStream> {
        self.record(usize::try_from(code).unwrap_or(UNKNOWN));
        self.method.streams.then_some(OpenStream { method: self.method })
    }

    /// It was answered with this code for this reason.
    pub fn failed(mut self, code: i32, reason: &str) {
        let code = usize::try_from(code).unwrap_or(UNKNOWN);
        self.method.count_error(code, reason);
        self.record(code);
    }

    fn record(&mut self, code: usize) {
        self.ended = true;
        let took: Duration = self.began.elapsed();
        // Registers at most once for each method and code.
        let duration = match self.method.durations.get(code).and_then(OnceLock::get) {
            Some(known) => Some(known),
            None => metrics().with(|| self.method.duration(code)),
        };
        if let Some(duration) = duration {
            duration.record(took);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.method.count_error(CANCELLED, "CANCELLED");
            self.record(CANCELLED);
        }
    }
}

/// A stream that was opened. Dropped, its caller has read enough: that is no failure.
#[derive(Debug)]
pub struct OpenStream {
    method: &'static Method,
}

impl OpenStream {
    /// It ended with this code for this reason. It was counted as a call when it opened.
    pub fn failed(self, code: i32, reason: &str) {
        self.method.count_error(usize::try_from(code).unwrap_or(UNKNOWN), reason);
    }
}
