//! Requests that are nearly right, and parts of them.

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use keypool_client::v1;

use super::{mutate::mutate, plan, requests::CALLERS};
use crate::forge::NOW;

const GROUP: &[u8] = b"the group of the fuzzing";

pub(super) fn upload(user: &str, u: &mut Unstructured<'_>) -> Result<v1::UploadKeyPackagesRequest> {
    let mut key_packages = Vec::new();
    for _ in 0..u.int_in_range(0..=3_u8)? {
        key_packages.push(plan::package(user, NOW, u)?.into());
    }
    if u.ratio(1, 8)? {
        key_packages.extend(many(u, some_bytes)?);
    }
    Ok(v1::UploadKeyPackagesRequest { key_packages, mode: *u.choose(&[0, 0, 1, 2, 3, -1])? })
}

pub(super) fn reserve(u: &mut Unstructured<'_>) -> Result<v1::ReserveKeyPackagesRequest> {
    let code = |u: &mut Unstructured<'_>| u.choose(&[1, 2, 0x0a0a, 65_535, 65_536]).copied();
    let required = match u.ratio(1, 16)? {
        true => Some(v1::RequiredCapabilities {
            extension_types: many(u, code)?,
            proposal_types: many(u, code)?,
            credential_types: many(u, code)?,
        }),
        false => None,
    };
    let ttl = match u.ratio(1, 8)? {
        true => Some(prost_types::Duration { seconds: number(u)?, nanos: u.arbitrary()? }),
        false => None,
    };
    let request_id = match u.ratio(15, 16)? {
        true => uuid::Uuid::from_bytes(u.arbitrary()?).to_string(),
        false => text(u)?,
    };
    Ok(v1::ReserveKeyPackagesRequest {
        request_id,
        group_id: group(u)?,
        cipher_suite: match u.ratio(15, 16)? {
            true => 1,
            false => *u.choose(&[2, 0, 65_536, u32::MAX])?,
        },
        targets: many(u, |u| Ok(v1::Target { user_id: user(u)?, client_ids: clients(u)? }))?,
        required_capabilities: required,
        ttl,
        last_resort: *u.choose(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, i32::MIN])?,
        all_or_nothing: u.arbitrary()?,
    })
}

fn clients(u: &mut Unstructured<'_>) -> Result<Vec<String>> {
    if u.ratio(3, 4)? { Ok(vec!["phone".into()]) } else { many(u, id) }
}

/// A list as long as one may be, or longer, or much longer.
pub(super) fn many<T: Clone>(
    u: &mut Unstructured<'_>,
    mut one: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let len = match u.ratio(7, 8)? {
        true => 1,
        false => *u.choose(&[0, 2, 3, 100, 101, 1000, 1001, 10_000])?,
    };
    let mut list = Vec::new();
    for _ in 0..len.min(4) {
        list.push(one(u)?);
    }
    if let Some(last) = list.last().cloned() {
        list.resize(len, last);
    }
    Ok(list)
}

fn user(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(7, 8)? { u.choose(&CALLERS).map(|id| (*id).into()) } else { id(u) }
}

/// Nearly always what a field is that is not set.
pub(super) fn seldom<T: Default>(
    u: &mut Unstructured<'_>,
    one: impl FnOnce(&mut Unstructured<'_>) -> Result<T>,
) -> Result<T> {
    if u.ratio(1, 8)? { one(u) } else { Ok(T::default()) }
}

pub(super) fn id(u: &mut Unstructured<'_>) -> Result<String> {
    let ids = ["", "", "", "alice", "bob", "carol", "phone", "tablet", "nobody"];
    if u.ratio(15, 16)? { u.choose(&ids).map(|id| (*id).into()) } else { text(u) }
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    match u.int_in_range(0..=4_u8)? {
        0 => Ok("é".repeat(*u.choose(&[127, 128, 200])?)),
        1 => Ok("\0".into()),
        2 => Ok("\u{85}\u{202e}".into()),
        _ => String::arbitrary(u),
    }
}

pub(super) fn some_of(known: &[String], u: &mut Unstructured<'_>) -> Result<String> {
    if known.is_empty() || u.ratio(1, 16)? {
        return text(u);
    }
    let mut chosen = u.choose(known)?.clone().into_bytes();
    if u.ratio(1, 16)? {
        mutate(&mut chosen, &[], u)?;
    }
    Ok(String::from_utf8_lossy(&chosen).into_owned())
}

pub(super) fn some_bytes(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let len = *u.choose(&[0, 0, 0, 1, 31, 32, 33, 64, 255, 256, 600])?;
    let mut bytes = u.bytes(u.len().min(len))?.to_vec();
    bytes.resize(len, 7);
    Ok(bytes.into())
}

pub(super) fn group(u: &mut Unstructured<'_>) -> Result<Bytes> {
    if u.ratio(15, 16)? { Ok(GROUP.into()) } else { some_bytes(u) }
}

fn number(u: &mut Unstructured<'_>) -> Result<i64> {
    let edges = [0, 1, -1, 60, NOW as i64, 253_402_300_799, 253_402_300_800, i64::MAX, i64::MIN];
    if u.ratio(3, 4)? { u.choose(&edges).copied() } else { u.arbitrary() }
}

pub(super) fn timestamp(u: &mut Unstructured<'_>) -> Result<Option<prost_types::Timestamp>> {
    match u.ratio(1, 3)? {
        true => Ok(Some(prost_types::Timestamp { seconds: number(u)?, nanos: u.arbitrary()? })),
        false => Ok(None),
    }
}
