//! What a client says that it can, in the form in which the store compares it.

/// The lists of RFC 9420, section 7.2 that a group can make demands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CapabilityKind {
    Extension = 0,
    Proposal = 1,
    Credential = 2,
}

/// A set of extension, proposal and credential types, each as one number:
/// `kind * 65536 + type`, where kind is 0 for extensions, 1 for proposals, 2 for credentials.
/// Sorted, without repetition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities(Vec<i32>);

impl Capabilities {
    /// The types that a leaf node lists. Those that every client supports by default are not
    /// among them (RFC 9420, section 7.2).
    pub fn listed(
        extensions: impl IntoIterator<Item = u16>,
        proposals: impl IntoIterator<Item = u16>,
        credentials: impl IntoIterator<Item = u16>,
    ) -> Self {
        let mut codes: Vec<i32> = Vec::new();
        codes.extend(extensions.into_iter().map(|code| encode(CapabilityKind::Extension, code)));
        codes.extend(proposals.into_iter().map(|code| encode(CapabilityKind::Proposal, code)));
        codes.extend(credentials.into_iter().map(|code| encode(CapabilityKind::Credential, code)));
        codes.sort_unstable();
        codes.dedup();
        Self(codes)
    }

    /// The types that a group requires of a leaf node (RFC 9420, section 11.1), without those
    /// that every client supports by default: these are always met.
    pub fn required(
        extensions: impl IntoIterator<Item = u16>,
        proposals: impl IntoIterator<Item = u16>,
        credentials: impl IntoIterator<Item = u16>,
    ) -> Self {
        Self::listed(
            extensions.into_iter().filter(|&code| !is_default_extension(code)),
            proposals.into_iter().filter(|&code| !is_default_proposal(code)),
            credentials,
        )
    }

    /// Whether a type is in the set.
    pub(super) fn contains(&self, kind: CapabilityKind, code: u16) -> bool {
        self.0.binary_search(&encode(kind, code)).is_ok()
    }

    /// The numbers, ascending.
    pub fn codes(&self) -> &[i32] {
        &self.0
    }

    /// The numbers, ascending.
    pub fn into_codes(self) -> Vec<i32> {
        self.0
    }
}

fn encode(kind: CapabilityKind, code: u16) -> i32 {
    (kind as i32) << 16 | i32::from(code)
}

/// Whether every client supports the extension type unlisted (RFC 9420, section 7.2).
pub(super) fn is_default_extension(code: u16) -> bool {
    (1..=5).contains(&code)
}

/// Whether every client supports the proposal type unlisted (RFC 9420, section 7.2).
pub(super) fn is_default_proposal(code: u16) -> bool {
    (1..=7).contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_types_keep_their_kind() {
        let codes = Capabilities::listed([0xffff, 10, 10], [8], [2, 1]).into_codes();
        assert_eq!(codes, [10, 0xffff, 0x1_0008, 0x2_0001, 0x2_0002]);
    }

    #[test]
    fn defaults_are_never_required_and_grease_is() {
        let codes = Capabilities::required(0..=6, 0..=8, [1, 0x0a0a]).into_codes();
        assert_eq!(codes, [0, 6, 0x1_0000, 0x1_0008, 0x2_0001, 0x2_0a0a]);
    }
}
