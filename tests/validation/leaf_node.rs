//! INVALID_LEAF_NODE.

use super::*;

#[test]
fn made_for_no_key_package() {
    for (source, message) in [
        (Source::Update, "leaf_node_source is update, not key_package"),
        (Source::Commit(vec![7; 32]), "leaf_node_source is commit, not key_package"),
        (Source::Unknown(0), "leaf_node_source is no value of RFC 9420, section 7.2"),
        (Source::Unknown(4), "leaf_node_source is no value of RFC 9420, section 7.2"),
    ] {
        for suite in [1, 5] {
            let forge = good(suite).with(|it| it.source = source.clone());
            refused(&forge.build(), InvalidLeafNode, message);
        }
    }
}

#[test]
fn its_own_version_suite_or_credential_type_unlisted() {
    let message = "the capabilities do not list the version mls10";
    refused_forge(InvalidLeafNode, message, |it| it.capabilities.versions = vec![GREASE]);
    let message = "the capabilities do not list the package's own cipher suite";
    refused_forge(InvalidLeafNode, message, |it| it.capabilities.cipher_suites = vec![2]);
    let message = "the capabilities do not list the leaf's own credential type";
    refused_forge(InvalidLeafNode, message, |it| it.capabilities.credentials = vec![]);
}

#[test]
fn default_types_listed() {
    for code in 1..=5_u16 {
        let message = format!("the capabilities list the default extension {code:#06x}");
        refused_forge(InvalidLeafNode, &message, |it| it.capabilities.extensions.push(code));
    }
    for code in 1..=7_u16 {
        let message = format!("the capabilities list the default proposal {code:#06x}");
        refused_forge(InvalidLeafNode, &message, |it| it.capabilities.proposals.push(code));
    }
    accepted(&good(1).with(|it| it.capabilities.proposals = vec![8]));
}

#[test]
fn extensions_uncovered() {
    for code in [0, 7, GREASE, 0xff00] {
        let message =
            format!("the capabilities do not list extension {code:#06x} of the leaf node");
        refused_forge(InvalidLeafNode, &message, |it| {
            it.leaf_extensions.push((code, Vec::new()));
        });
    }
    for code in [0, LAST_RESORT, GREASE, 0xff00] {
        let message =
            format!("the capabilities do not list extension {code:#06x} of the KeyPackage");
        refused_forge(InvalidLeafNode, &message, |it| {
            it.extensions.push((code, Vec::new()));
        });
    }
    let dictionary = app_data_dictionary(&[(4, b"")]);
    let message = "the capabilities do not list extension 0x0006 of the KeyPackage";
    refused_forge(InvalidLeafNode, message, |it| {
        it.extensions.push((APP_DATA_DICTIONARY, dictionary));
    });
}

#[test]
fn a_proposal_or_credential_of_that_number_covers_no_extension() {
    let message = "the capabilities do not list extension 0xff00 of the leaf node";
    refused_forge(InvalidLeafNode, message, |it| {
        it.leaf_extensions.push((0xff00, Vec::new()));
        it.capabilities.proposals.push(0xff00);
        it.capabilities.credentials.push(0xff00);
    });
}

#[test]
fn an_extension_that_belongs_elsewhere() {
    for code in 2..=5_u16 {
        let message = format!("extension {code:#06x} does not belong into a leaf");
        refused_forge(InvalidLeafNode, &message, |it| {
            it.leaf_extensions.push((code, Vec::new()));
        });
    }
    let forge = good(1).leaf_extension(LAST_RESORT, b"");
    let message = "extension 0x000a does not belong into a leaf";
    refused(&forge.build(), InvalidLeafNode, message);
}

#[test]
fn an_encryption_key_that_is_none() {
    for suite in servable_cipher_suites() {
        for (bad, defect) in bad_keys(suite.0) {
            let forge = good(suite.0).with(|it| it.encryption_key = bad);
            let message = format!("the encryption_key {defect}");
            refused(&forge.build(), InvalidLeafNode, &message);
        }
    }
}

#[test]
fn a_signature_key_that_is_none() {
    let message = "the signature_key has the wrong length";
    for len in [0, 31, 33] {
        refused_forge(InvalidLeafNode, message, |it| it.signature_key = vec![1; len]);
    }
    for suite in [2, 5, 7] {
        let message = "the signature_key is not an uncompressed point of the curve";
        let off_curve = good(suite).with(|it| *it.signature_key.last_mut().unwrap() ^= 1);
        refused(&off_curve.build(), InvalidLeafNode, message);
        let hybrid = good(suite).with(|it| {
            it.signature_key[0] = 6 | it.signature_key.last().unwrap() & 1;
        });
        refused(&hybrid.build(), InvalidLeafNode, message);
    }
}
