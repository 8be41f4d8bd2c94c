//! UNSUPPORTED_VERSION and UNSUPPORTED_CIPHER_SUITE.

use super::*;

#[test]
fn another_version() {
    for version in [0, 2, 0xff, GREASE] {
        let message = format!("protocol version {version:#06x} is not mls10");
        refused_forge(UnsupportedVersion, &message, |it| it.version = version);
        if version <= 0xff {
            let bytes = good(1).with(|it| it.version = version).build();
            refused(&mls_message(version, 5, &bytes), UnsupportedVersion, &message);
        }
    }
}

#[test]
fn a_suite_that_is_unknown_or_not_on_the_list() {
    for suite in [0, 4, 6, 8, GREASE, 0xffff] {
        let message = format!("cipher suite {suite:#06x} is not on this server's list");
        refused_forge(UnsupportedCipherSuite, &message, |it| {
            it.cipher_suite = suite;
            it.capabilities.cipher_suites = vec![suite];
        });
    }
    let bytes = good(7).build();
    let caller = client("alice", "phone");
    let rejection = validate(&bytes, &caller, &UploadPolicy::default(), at(NOW)).unwrap_err();
    assert_eq!(rejection.reason, UnsupportedCipherSuite);
}

#[test]
fn a_suite_that_cannot_be_served_even_when_it_is_on_the_list() {
    let policy = UploadPolicy {
        cipher_suites: [CipherSuite(4), CipherSuite(0xffff)].into(),
        ..UploadPolicy::default()
    };
    for suite in [4, 0xffff] {
        let bytes = good(1).with(|it| it.cipher_suite = suite).build();
        let rejection = validate(&bytes, &client("alice", "phone"), &policy, at(NOW)).unwrap_err();
        assert_eq!(rejection.reason, UnsupportedCipherSuite);
    }
}
