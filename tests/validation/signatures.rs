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

/// Packages of one client, who has a key for each suite. What one of them is signed for, by its place,
/// may be something else.
fn upload(suites: &[u16], wrong: Option<(usize, &str)>) -> Vec<Vec<u8>> {
    let mut forges: Vec<Forge> = Vec::new();
    let mut packages = Vec::new();
    for (at, &suite) in suites.iter().enumerate() {
        let known = forges.iter().position(|forge| forge.cipher_suite == suite);
        let known = known.unwrap_or_else(|| {
            forges.push(good(suite));
            forges.len() - 1
        });
        let forge = &mut forges[known];
        forge.init_key =
            hpke_public_key(Ciphersuite::try_from(suite).unwrap().hpke_kem_algorithm());
        let signature = |label| (wrong == Some((at, label))).then(|| forge.sign(label, b"another"));
        let (leaf, package) = (signature("LeafNodeTBS"), signature("KeyPackageTBS"));
        (forge.leaf_signature, forge.signature) = (leaf, package);
        packages.push(forge.build());
    }
    packages
}

/// Which of them are refused, and why: together, and alone.
#[track_caller]
fn refusals(packages: &[Vec<u8>]) -> Vec<(usize, RejectReason, String)> {
    let results = validate_all(packages, &client("alice", "phone"), &every_suite(), at(NOW));
    assert_eq!(results.len(), packages.len());
    for (package, result) in packages.iter().zip(&results) {
        assert_eq!(result, &judge(package));
    }
    let refused = |(at, result): (usize, Result<_, Rejection>)| {
        result.err().map(|rejection| (at, rejection.reason, rejection.message))
    };
    results.into_iter().enumerate().filter_map(refused).collect()
}

#[test]
fn one_that_is_wrong_among_many_is_refused_and_no_other() {
    for suites in [&[1; 18][..], &[1, 1, 3, 3, 1], &[1, 2, 1, 5, 2, 0x51, 1]] {
        assert_eq!(refusals(&upload(suites, None)), []);
        for wrong in 0..suites.len() {
            for (label, message) in [("LeafNodeTBS", LEAF), ("KeyPackageTBS", PACKAGE)] {
                let refused = refusals(&upload(suites, Some((wrong, label))));
                assert_eq!(refused, [(wrong, InvalidSignature, message.to_owned())]);
            }
        }
    }
}

#[test]
fn two_that_are_swapped_are_both_refused() {
    let mut packages = upload(&[1; 4], None);
    let signature = |package: &[u8]| package[package.len() - 64..].to_vec();
    let (first, second) = (signature(&packages[1]), signature(&packages[3]));
    for (at, signature) in [(1, second), (3, first)] {
        let start = packages[at].len() - 64;
        packages[at][start..].copy_from_slice(&signature);
    }
    let refused: Vec<usize> = refusals(&packages).into_iter().map(|(at, ..)| at).collect();
    assert_eq!(refused, [1, 3]);
}

#[test]
fn a_key_that_is_no_point_costs_no_other_package_its_place() {
    let mut packages = upload(&[1; 3], None);
    packages[1] = good(1).with(|it| it.signature_key = vec![2; 32]).build();
    let refused: Vec<usize> = refusals(&packages).into_iter().map(|(at, ..)| at).collect();
    assert_eq!(refused, [1]);
}
