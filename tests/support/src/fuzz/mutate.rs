//! Bytes made wrong.

use arbitrary::{Result, Unstructured};

/// Changes bytes once. `lengths` are the places where the length of a vector is encoded.
pub(super) fn mutate(
    bytes: &mut Vec<u8>,
    lengths: &[usize],
    u: &mut Unstructured<'_>,
) -> Result<()> {
    let place = |len: usize, u: &mut Unstructured<'_>| u.int_in_range(0..=len);
    let len = bytes.len();
    let at = place(len, u)?;
    match u.int_in_range(0..=8_u8)? {
        0 if at < len => bytes[at] = u.arbitrary()?,
        1 if at < len => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
        2 => bytes.insert(at, u.arbitrary()?),
        3 => bytes.truncate(at),
        4 => {
            let added = u.int_in_range(1..=64)?;
            bytes.extend(u.bytes(added.min(u.len()))?);
        }
        5 => drop(bytes.drain(at..place(len, u)?.max(at))),
        6 => {
            let piece =
                bytes[at..place(len, u)?.clamp(at, at.saturating_add(300).min(len))].to_vec();
            let to = place(len, u)?;
            bytes.splice(to..to, piece);
        }
        7 if at < len => {
            let edge = *u.choose(&[0_u8, 1, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xff])?;
            bytes[at] = edge;
        }
        _ if !lengths.is_empty() => {
            let at = *u.choose(lengths)?;
            if at < len {
                lie_about_length(bytes, at, u)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Another length in front of a vector, or the same in more bytes (RFC 9420, section 2.1.2).
fn lie_about_length(bytes: &mut Vec<u8>, at: usize, u: &mut Unstructured<'_>) -> Result<()> {
    let (old, width) = match bytes[at] >> 6 {
        0 => (u64::from(bytes[at]), 1),
        1 => (u64::from(bytes[at] & 0x3f) << 8, 2),
        _ => (0, 4),
    };
    let old = old | bytes.get(at + 1).map_or(0, |low| if width == 2 { u64::from(*low) } else { 0 });
    let length = match u.int_in_range(0..=4_u8)? {
        0 => old,
        1 => old + 1,
        2 => old.saturating_sub(1),
        3 => *u.choose(&[0, 0x3f, 0x40, 0x3fff, 0x4000, 0x3fff_ffff])?,
        _ => u.int_in_range(0..=0x3fff_ffff)?,
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x3fff_ffff;
    let encoded = match u.int_in_range(0..=3_u8)? {
        0 => vec![(length & 0x3f) as u8],
        1 => ((length & 0x3fff) as u16 | 0x4000).to_be_bytes().to_vec(),
        2 => (length | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (u64::from(length) | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    };
    let end = (at + width).min(bytes.len());
    bytes.splice(at..end, encoded);
    Ok(())
}

/// The places of the lengths in a KeyPackage whose leaf node has a lifetime (RFC 9420, sections 7.2
/// and 10); in another one, those that are found before it differs.
pub(super) fn lengths_in(package: &[u8]) -> Vec<usize> {
    let (mut places, mut at) = (Vec::new(), 4);
    // What lies between the vectors: the credential's type, then source and lifetime.
    for between in [0, 0, 0, 2, 0, 0, 0, 0, 0, 17, 0, 0, 0] {
        at += between;
        places.push(at);
        let Some(&first) = package.get(at) else { break };
        let (width, high) = match first >> 6 {
            0 => (1, usize::from(first)),
            1 => (2, usize::from(first & 0x3f)),
            _ => break,
        };
        let low = package.get(at + 1).map_or(0, |low| usize::from(*low));
        at += width + if width == 2 { high << 8 | low } else { high };
    }
    places
}
