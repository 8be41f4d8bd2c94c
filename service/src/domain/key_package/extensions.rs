//! The rules for lists of extensions (RFC 9420, section 13.4) and for those extensions that this
//! service reads itself.

use super::{
    rejection::Rejection,
    wire::{Extension, Reader, malformed},
};

/// Extension type `last_resort`, from before it became a component.
pub(super) const LAST_RESORT: u16 = 0x000a;
/// Extension type `app_data_dictionary` (draft-ietf-mls-extensions, section 4.6).
const APP_DATA_DICTIONARY: u16 = 0x0006;
/// Component `last_resort_key_package` of that dictionary.
const LAST_RESORT_COMPONENT: u16 = 0x0004;

/// RFC 9420, section 13.4: at most one extension of a type. A dictionary must be well-formed
/// wherever it stands.
pub(super) fn check_list(extensions: &[Extension<'_>]) -> Result<(), Rejection> {
    let mut types: Vec<u16> = extensions.iter().map(|extension| extension.extension_type).collect();
    types.sort_unstable();
    if let Some(twice) = types.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(malformed(&format!("has two extensions of type {:#06x}", twice[0])));
    }
    for extension in extensions {
        if extension.extension_type == APP_DATA_DICTIONARY {
            has_last_resort_component(extension.data)?;
        }
    }
    Ok(())
}

/// RFC 9420, section 17.3: none of the extension types of that document may stand in the
/// extensions of a KeyPackage itself.
pub(super) fn check_key_package_types(extensions: &[Extension<'_>]) -> Result<(), Rejection> {
    match extensions.iter().find(|extension| (1..=5).contains(&extension.extension_type)) {
        Some(extension) => Err(malformed(&format!(
            "extension type {:#06x} does not belong into the extensions of a KeyPackage",
            extension.extension_type
        ))),
        None => Ok(()),
    }
}

/// Whether the KeyPackage's own extensions mark it as a last resort package, in either encoding.
pub(super) fn is_last_resort(extensions: &[Extension<'_>]) -> Result<bool, Rejection> {
    let mut last_resort = false;
    for extension in extensions {
        match extension.extension_type {
            LAST_RESORT if extension.data.is_empty() => last_resort = true,
            LAST_RESORT => return Err(malformed("the last_resort extension carries data")),
            APP_DATA_DICTIONARY => last_resort |= has_last_resort_component(extension.data)?,
            _ => {}
        }
    }
    Ok(last_resort)
}

/// Reads an AppDataDictionary (draft-ietf-mls-extensions, section 4.6): entries in ascending
/// order of their component, each once.
fn has_last_resort_component(dictionary: &[u8]) -> Result<bool, Rejection> {
    let unreadable = |_| malformed("the app_data_dictionary does not parse");
    let mut reader = Reader(dictionary);
    let mut entries = Reader(reader.vector().map_err(unreadable)?);
    reader.end().map_err(unreadable)?;
    let mut found = false;
    let mut last = None;
    while !entries.0.is_empty() {
        let component = entries.u16().map_err(unreadable)?;
        let data = entries.vector().map_err(unreadable)?;
        if last >= Some(component) {
            return Err(malformed("the app_data_dictionary is not in strictly ascending order"));
        }
        last = Some(component);
        if component == LAST_RESORT_COMPONENT {
            if !data.is_empty() {
                return Err(malformed("the last_resort_key_package component carries data"));
            }
            found = true;
        }
    }
    Ok(found)
}
