//! INVALID_SIGNATURE.

use super::*;

const LEAF: &str = "the signature of the leaf node does not verify";
const PACKAGE: &str = "the signature of the KeyPackage does not verify";

#[test]
fn of_something_else_in_every_suite() {
    for suite in servable_cipher_suites() {
        let forge = good(suite.0);
        let leaf = forge.sign("LeafNodeTBS", b"another leaf node");
        let package = forge.sign("KeyPackageTBS", b"another KeyPackage");
        let forge = forge.with(|it| it.leaf_signature = Some(leaf));
        refused(&forge.build(), InvalidSignature, LEAF);
        let forge = forge.with(|it| {
            it.leaf_signature = None;
            it.signature = Some(package);
        });
        refused(&forge.build(), InvalidSignature, PACKAGE);
    }
}

#[test]
fn empty_ones() {
    refused_forge(InvalidSignature, LEAF, |it| it.leaf_signature = Some(Vec::new()));
    refused_forge(InvalidSignature, PACKAGE, |it| it.signature = Some(Vec::new()));
}

#[test]
fn those_of_another_key() {
    refused_forge(InvalidSignature, LEAF, |it| it.signature_key = good(1).signature_key);
}

#[test]
fn every_flipped_bit_is_noticed() {
    for suite in [1, 2] {
        let bytes = good(suite).build();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(judge(&forged).is_err(), "suite {suite}, bit {bit}");
        }
    }
}
