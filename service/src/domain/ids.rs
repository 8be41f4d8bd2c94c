//! The identifiers of the contract, parsed once and valid ever after.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use uuid::Uuid;

/// How many buckets the users are spread over. Fixed for ever: it is part of every key.
pub const BUCKETS: u16 = 1024;

/// The part of the key space that all rows of a user live in; what a sharded Postgres
/// distributes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(i16);

impl Bucket {
    /// The bucket of a user: the first two bytes of SHA-256 of the id, modulo [`BUCKETS`].
    pub fn of(user: &UserId) -> Self {
        let hash = digest(&SHA256, user.as_str().as_bytes());
        let bytes = hash.as_ref();
        Self::from_number(u16::from_be_bytes([bytes[0], bytes[1]]) % BUCKETS).unwrap_or(Self(0)) // a remainder is always below BUCKETS
    }

    /// The bucket with this number; `None` at or above [`BUCKETS`].
    pub fn from_number(number: u16) -> Option<Self> {
        (number < BUCKETS).then(|| i16::try_from(number).ok().map(Self))?
    }

    /// The number as the tables hold it.
    pub fn get(self) -> i16 {
        self.0
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 255 bytes of UTF-8 without control characters")]
pub struct InvalidId;

fn check_id(text: &str) -> Result<(), InvalidId> {
    let fits = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then_some(()).ok_or(InvalidId)
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Accepts 1 to 255 bytes without control characters.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check_id(&text)?;
                Ok(Self(text))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A user: the owner of several clients.
    UserId
}
text_id! {
    /// A client: one device of a user (RFC 9420, section 1.1).
    ClientId
}

/// A client and its user: who calls, or whose pool it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey {
    /// The user.
    pub user: UserId,
    /// The client of that user.
    pub client: ClientId,
}

impl ClientKey {
    /// Sixteen bytes that stand for this client where the full ids would cost too much room:
    /// SHA-256 of the two ids, each behind its length, cut in half.
    pub fn digest(&self) -> ClientDigest {
        let mut text = Vec::with_capacity(self.user.0.len() + self.client.0.len() + 2);
        for id in [&self.user.0, &self.client.0] {
            text.push(id.len() as u8); // an id has at most 255 bytes
            text.extend_from_slice(id.as_bytes());
        }
        ClientDigest(short_digest(&text))
    }
}

/// See [`ClientKey::digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientDigest(pub [u8; 16]);

/// The first half of SHA-256.
pub fn short_digest(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..16]);
    short
}

/// An MLS cipher suite (RFC 9420, section 17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CipherSuite(pub u16);

impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A KeyPackageRef (RFC 9420, section 5.2): 32, 48 or 64 bytes, by the suite's hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPackageRef(pub Vec<u8>);

/// An MLS group id, 1 to 255 bytes. Its `Debug` form hides it: group ids never reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupId(Vec<u8>);

impl GroupId {
    /// Accepts 1 to 255 bytes.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        (1..=255).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The id itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupId(..)")
    }
}

/// The caller's name for a Reserve, by which a repeated one is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub Uuid);
