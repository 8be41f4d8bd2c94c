//! CREDENTIAL_MISMATCH.

use super::*;

#[test]
fn that_names_somebody_else() {
    let message = "the identity of the BasicCredential is not the caller's";
    for identity in ["", "bob", "alic", "alice2", "Alice", "alice\0"] {
        let bytes = Forge::new(1, identity).build();
        refused(&bytes, CredentialMismatch, message);
    }
}

#[test]
fn of_a_type_that_names_nobody_here() {
    for (code, message) in [
        (2, "no trust anchors for X.509 credentials are configured"),
        (3, "credential type 0x0003 cannot name a caller here"),
        (GREASE, "credential type 0x3a3a cannot name a caller here"),
    ] {
        refused_forge(CredentialMismatch, message, |it| {
            it.credential_type = code;
            it.capabilities.credentials = vec![code];
        });
    }
}
