//! The path of an uploaded KeyPackage, from bytes to what may be handed out.

use std::slice;

use arbitrary::Unstructured;
use keypool_service::domain::{
    clock::{Clock as _, SystemClock},
    crypto::servable_cipher_suites,
    key_package::{RejectReason, UploadPolicy, ValidatedKeyPackage, validate_all},
};
use openmls::prelude::{KeyPackage, KeyPackageIn, OpenMlsCrypto, OpenMlsProvider, ProtocolVersion};
use openmls_traits::types::Ciphersuite;
use tls_codec::{DeserializeBytes as _, Serialize as _};

use super::{assert_bounded, plan};
use crate::{
    member::{Libcrux, RustCrypto},
    world,
};

const USER: &str = "alice";

/// Measured: 21 for each byte and 6 KB. openmls reads lists of extensions into boxes.
const PEAK_PER_BYTE: u64 = 40;
const PEAK_CONSTANT: u64 = 32 * 1024;

/// How an input was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Both keypool and openmls take it.
    Accepted,
    /// keypool refuses it.
    Refused(RejectReason),
}

/// Has a package made of `data` judged.
///
/// # Panics
/// keypool panics, holds more memory than its input may cost, accepts what openmls does not, or
/// blames a signature that openmls verifies.
pub fn key_package(data: &[u8]) -> Verdict {
    let now = SystemClock.now(); // openmls goes by the system clock
    let mut u = Unstructured::new(data);
    let seconds = now.unix_timestamp().try_into().expect("a time after 1970");
    // Where the input ends, the rest is as it was.
    let Ok(bytes) = plan::package(USER, seconds, &mut u) else {
        return Verdict::Refused(RejectReason::Malformed);
    };
    let policy = UploadPolicy {
        cipher_suites: servable_cipher_suites(),
        trust_anchors: plan::trust_anchors(),
        ..UploadPolicy::default()
    };
    let caller = world::client(USER, "phone");
    let validate = |bytes: &Vec<u8>| {
        let mut results = validate_all(slice::from_ref(bytes), &caller, &policy, now);
        results.pop().expect("a result for each package")
    };
    let mut judged = None;
    let held = allocation_counter::measure(|| judged = Some(validate(&bytes)));
    assert_bounded(held.bytes_max, PEAK_PER_BYTE, PEAK_CONSTANT, bytes.len());
    match judged.expect("a verdict") {
        Ok(accepted) => {
            assert_openmls_agrees(&accepted);
            let again = validate(&accepted.bytes);
            assert_eq!(again.as_ref(), Ok(&accepted), "what is kept is what was judged");
            Verdict::Accepted
        }
        Err(rejection) => {
            assert!(rejection.message.len() < 512, "{rejection:?}");
            if rejection.reason == RejectReason::InvalidSignature {
                // Without the MLSMessage around it; openmls is given nothing that is no KeyPackage.
                let wrapped = bytes.get(2..5) == Some(&[0, 5, 0]);
                let bare = if wrapped { &bytes[4..] } else { &bytes[..] };
                let read = read_by_openmls(&RustCrypto::default(), bare);
                assert!(read.is_err(), "openmls verifies its signatures: {rejection:?}");
            }
            Verdict::Refused(rejection.reason)
        }
    }
}

/// What keypool hands out is read and verified by an adder's MLS library, under the same ref.
fn assert_openmls_agrees(accepted: &ValidatedKeyPackage) {
    let suite = Ciphersuite::try_from(accepted.cipher_suite.0).expect("a suite");
    let (rust_crypto, libcrux) = (RustCrypto::default(), Libcrux::new().expect("randomness"));
    if rust_crypto.crypto().supports(suite).is_ok() {
        assert_reads(&rust_crypto, accepted);
    } else if libcrux.crypto().supports(suite).is_ok() {
        assert_reads(&libcrux, accepted);
    }
    // No provider of openmls here knows the others.
}

fn assert_reads(provider: &impl OpenMlsProvider, accepted: &ValidatedKeyPackage) {
    let package = match read_by_openmls(provider, &accepted.bytes) {
        Ok(package) => package,
        // openmls 0.9.2 refuses extensions of GREASE types, listed or not, where RFC 9420, section
        // 13.5 has them ignored.
        Err(error) if lists_grease(accepted) && error.contains("extension") => return,
        Err(error) => panic!("keypool accepts what openmls does not: {error}"),
    };
    let reference = package.hash_ref(provider.crypto()).expect("a ref");
    assert_eq!(reference.as_slice(), accepted.key_package_ref.0);
    // It does not know the newer mark, a component.
    assert!(accepted.last_resort || !package.last_resort());
    let encoded = package.tls_serialize_detached().expect("an encoding");
    assert_eq!(encoded, accepted.bytes, "one package has one encoding");
}

/// Whether a GREASE extension may stand in the package.
fn lists_grease(accepted: &ValidatedKeyPackage) -> bool {
    let extensions = accepted.capabilities.iter().filter_map(|&code| u16::try_from(code).ok());
    extensions.map(u16::to_be_bytes).any(|[high, low]| high == low && low & 0x0f == 0x0a)
}

fn read_by_openmls(provider: &impl OpenMlsProvider, bytes: &[u8]) -> Result<KeyPackage, String> {
    let package = KeyPackageIn::tls_deserialize_exact_bytes(bytes);
    let package = package.map_err(|error| error.to_string())?;
    package.validate(provider.crypto(), ProtocolVersion::Mls10).map_err(|error| error.to_string())
}
