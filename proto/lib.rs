//! The gRPC contract of keypool: generated messages, client and server.
//!
//! The `.proto` files beside this one are the source; this crate only compiles them.

mod codec;
mod outcome;

pub use codec::MAX_REQUEST_FIELDS;

/// The messages and services of package `keypool.v1`.
#[allow(clippy::all, clippy::pedantic, clippy::nursery, missing_docs)]
#[allow(rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("keypool.v1");
}

/// The `domain` of every `ErrorInfo` that keypool sends.
pub const ERROR_DOMAIN: &str = "keypool.v1";

/// The encoded `FileDescriptorSet` of the contract, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keypool.v1.bin"));

const REASON_PREFIX: &str = "ERROR_REASON_";

impl v1::ErrorReason {
    /// The reason as `ErrorInfo.reason` carries it: the enum value's name without its prefix.
    pub fn wire_name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix(REASON_PREFIX).unwrap_or(name)
    }

    /// The reason that an `ErrorInfo.reason` names; `None` for one this build does not know.
    pub fn from_wire_name(name: &str) -> Option<Self> {
        Self::from_str_name(&format!("{REASON_PREFIX}{name}"))
    }
}
