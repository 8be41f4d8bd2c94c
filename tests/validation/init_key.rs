//! INVALID_INIT_KEY.

use super::*;

#[test]
fn that_is_no_public_key() {
    for suite in servable_cipher_suites() {
        for (bad, defect) in bad_keys(suite.0) {
            let forge = good(suite.0).with(|it| it.init_key = bad);
            refused(&forge.build(), InvalidInitKey, &format!("the init_key {defect}"));
        }
    }
}

#[test]
fn of_a_megabyte() {
    let bytes = good(1).with(|it| it.init_key = vec![7; 1 << 20]).build();
    assert_eq!(judge(&bytes).unwrap_err().reason, Malformed);
    let policy = UploadPolicy { max_key_package_bytes: 2 << 20, ..every_suite() };
    let rejection = validate(&bytes, &client("alice", "phone"), &policy, at(NOW)).unwrap_err();
    assert_eq!(rejection.reason, InvalidInitKey);
}

#[test]
fn that_is_the_encryption_key() {
    let message = "the init_key equals the encryption_key";
    refused_forge(InvalidInitKey, message, |it| it.init_key = it.encryption_key.clone());
}
