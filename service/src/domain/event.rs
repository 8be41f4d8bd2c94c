//! What became of a package.

use time::OffsetDateTime;

use super::{
    ids::{ClientDigest, ClientKey, KeyPackageRef},
    reservation_id::Locator,
};

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)+) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $($(#[$doc])* $kind,)+
        }

        impl EventKind {
            /// The name in the tables.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// The kind of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$kind),)+ _ => None }
            }
        }
    };
}

event_kinds! {
    /// The owner added the package.
    Uploaded = "uploaded",
    /// A caller reserved it.
    Reserved = "reserved",
    /// Its holder spent it.
    Spent = "spent",
    /// Its holder handed it back.
    Released = "released",
    /// Its reservation lapsed.
    Lapsed = "lapsed",
    /// Its reservation lapsed, and the policy burned it.
    Burned = "burned",
    /// Its owner revoked or replaced it.
    Revoked = "revoked",
    /// Its lifetime ended.
    Expired = "expired",
    /// A caller was granted it as the last resort.
    LastResortIssued = "last_resort_issued",
}

/// One event: what names it, and what it tells.
#[derive(Debug, Clone)]
pub struct Event {
    /// When, of which package, and what.
    pub key: EventKey,
    /// Whose package.
    pub owner: ClientKey,
    /// Its ref.
    pub key_package_ref: KeyPackageRef,
    /// Who did it; none for the service itself.
    pub actor: Option<ClientKey>,
    /// Whose reservation it is about.
    pub holder: Option<ClientDigest>,
    /// The group of that reservation.
    pub group_id: Option<Vec<u8>>,
}

/// What names an event, and orders events among each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventKey {
    /// When.
    pub at: OffsetDateTime,
    /// Of which package or, where there is a holder, which reservation.
    pub locator: Locator,
    /// What.
    pub kind: EventKind,
}
