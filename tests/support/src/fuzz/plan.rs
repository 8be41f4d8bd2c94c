//! KeyPackages that are right but for some fields, and signed over what they say.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use keypool_service::domain::key_package::TrustAnchors;

use super::mutate::{lengths_in, mutate};
use crate::{
    forge::{Capabilities, Forge, Source, app_data_dictionary, mls_message},
    x509::{Authority, ClientPublicKey, rcgen::SanType},
};

/// Who certifies users with X.509 credentials.
static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::root("Root", 1));

/// Suites with keys that are quick to make come more often.
const SUITES: [u16; 8] = [1, 1, 1, 1, 2, 3, 0x4d, 7];

/// Numbers that mean something to a reader of KeyPackages, GREASE among them.
const CODES: [u16; 20] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x000a, 0x000b, 0x004d, 0x0a0a, 0x3a3a, 0xeaea, 0x0906, 0xf000,
    0xf042, 0xffff,
];

/// A package for a user that is valid around `now`, seconds since 1970, or nearly so.
pub(super) fn package(user: &str, now: u64, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut forge = Forge::new(*u.choose(&SUITES)?, user).valid_around(now);
    if forge.cipher_suite == 1 && u.ratio(1, 5)? {
        forge = certified(forge, user, u)?;
    }
    for _ in 0..*u.choose(&[0_u8, 0, 1, 1, 1, 2, 3, 6])? {
        change(&mut forge, now, u)?;
    }
    let mut bytes = forge.build();
    let mut lengths = lengths_in(&bytes);
    for _ in 0..*u.choose(&[0_u8, 0, 0, 0, 1, 2])? {
        let (version, wire_format) = (*u.choose(&[1, 1, 1, 2])?, *u.choose(&[5, 5, 5, 1, 3])?);
        bytes = mls_message(version, wire_format, &bytes);
        lengths.iter_mut().for_each(|at| *at += 4);
    }
    for _ in 0..*u.choose(&[0_u8, 0, 0, 0, 1, 1, 2, 4])? {
        mutate(&mut bytes, &lengths, u)?;
    }
    Ok(bytes)
}

/// Who may certify these users.
pub(super) fn trust_anchors() -> TrustAnchors {
    let certificate = pem::encode(&pem::Pem::new("CERTIFICATE", ROOT.certificate()));
    let mut anchors = TrustAnchors::default();
    anchors.add_pem(certificate.as_bytes()).expect("a CA");
    anchors
}

/// With an X.509 credential (RFC 9420, section 5.3), whose certificates may be wrong in places.
fn certified(forge: Forge, user: &str, u: &mut Unstructured<'_>) -> Result<Forge> {
    let key = ClientPublicKey::new(1, &forge.signature_key);
    let name = SanType::DnsName(user.try_into().expect("a name of ASCII"));
    let mut chain = vec![ROOT.certify(&key, |params| params.subject_alt_names = vec![name])];
    if u.ratio(1, 3)? {
        chain.push(ROOT.certificate());
    }
    for _ in 0..*u.choose(&[0_u8, 0, 1, 1, 2])? {
        let at = u.choose_index(chain.len())?;
        mutate(&mut chain[at], &[], u)?;
    }
    Ok(forge.x509(&chain))
}

fn code(u: &mut Unstructured<'_>) -> Result<u16> {
    if u.ratio(3, 4)? { u.choose(&CODES).copied() } else { u.arbitrary() }
}

fn some_bytes(most: usize, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = u.int_in_range(0..=most)?;
    let mut bytes = u.bytes(len.min(u.len()))?.to_vec();
    bytes.resize(len, 0x5a);
    Ok(bytes)
}

fn time(now: u64, u: &mut Unstructured<'_>) -> Result<u64> {
    const LAST: u64 = 253_402_300_799; // of the year 9999
    let day = 86_400;
    let edges = [
        0,
        1,
        now - 3600,
        now - 1,
        now,
        now + 3600,
        now + 30 * day,
        now + 90 * day,
        now + 400 * day,
        LAST,
        LAST + 1,
        i64::MAX as u64,
        i64::MAX as u64 + 1,
        u64::MAX,
    ];
    if u.ratio(7, 8)? { u.choose(&edges).copied() } else { u.arbitrary() }
}

/// One field says something else; the signatures are made afterwards.
fn change(forge: &mut Forge, now: u64, u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=19_u8)? {
        0 => forge.version = code(u)?,
        1 => forge.cipher_suite = code(u)?,
        2 => mutate(&mut forge.init_key, &[], u)?,
        3 => mutate(&mut forge.encryption_key, &[], u)?,
        4 => mutate(&mut forge.signature_key, &[], u)?,
        5 => forge.credential_type = code(u)?,
        6 => mutate(&mut forge.credential, &[], u)?,
        7 | 8 => change_list(&mut forge.capabilities, u)?,
        9 => {
            // GREASE in every place that takes it (RFC 9420, section 13.5).
            let grease = 0x0a0a + 0x1010 * u.int_in_range(0..=14_u16)?;
            let lists = &mut forge.capabilities;
            for list in [
                &mut lists.cipher_suites,
                &mut lists.extensions,
                &mut lists.proposals,
                &mut lists.credentials,
            ] {
                list.push(grease);
            }
            forge.extensions.push((grease, some_bytes(40, u)?));
            forge.leaf_extensions.push((grease, some_bytes(40, u)?));
        }
        10..=12 => {
            let (extension, data) = (code(u)?, some_bytes(80, u)?);
            if u.ratio(2, 3)? {
                forge.capabilities.extensions.push(extension);
            }
            let list = match u.ratio(1, 2)? {
                true => &mut forge.extensions,
                false => &mut forge.leaf_extensions,
            };
            list.push((extension, data));
        }
        13 => {
            let mut components = Vec::new();
            for _ in 0..u.int_in_range(0..=3_u8)? {
                components.push((code(u)?, some_bytes(20, u)?));
            }
            let components: Vec<(u16, &[u8])> =
                components.iter().map(|(component, data)| (*component, &data[..])).collect();
            forge.extensions.push((6, app_data_dictionary(&components)));
            forge.capabilities.extensions.push(6);
        }
        14 => {
            forge.source = match u.int_in_range(0..=5_u8)? {
                0 => Source::Update,
                1 => Source::Commit(some_bytes(40, u)?),
                2 => Source::Unknown(u.arbitrary()?),
                _ => Source::KeyPackage(time(now, u)?, time(now, u)?),
            };
        }
        15 => forge.leaf_signature = Some(some_bytes(80, u)?),
        16 => forge.signature = Some(some_bytes(80, u)?),
        17 => {
            // A signature of the right key, made for something else.
            let label = *u.choose(&["LeafNodeTBS", "KeyPackageTBS", "GroupInfoTBS"])?;
            let content = forge.build();
            let content = &content[..u.int_in_range(0..=content.len())?];
            let signature = Some(forge.sign(label, content));
            match u.ratio(1, 2)? {
                true => forge.signature = signature,
                false => forge.leaf_signature = signature,
            }
        }
        18 => forge.init_key = forge.encryption_key.clone(),
        _ => forge.extensions.push((0x000a, Vec::new())),
    }
    Ok(())
}

fn change_list(lists: &mut Capabilities, u: &mut Unstructured<'_>) -> Result<()> {
    let list = match u.int_in_range(0..=4_u8)? {
        0 => &mut lists.versions,
        1 => &mut lists.cipher_suites,
        2 => &mut lists.extensions,
        3 => &mut lists.proposals,
        _ => &mut lists.credentials,
    };
    match u.int_in_range(0..=3_u8)? {
        0 => list.clear(),
        1 => list.push(code(u)?),
        2 => list.insert(0, code(u)?),
        _ => {
            let many = *u.choose(&[2_usize, 300, 5000])?;
            let code = code(u)?;
            list.extend(std::iter::repeat_n(code, many));
        }
    }
    Ok(())
}
