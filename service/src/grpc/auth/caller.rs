//! Who calls, and what it may do.

use std::fmt;

use crate::domain::{error::Error, ids::ClientKey};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Upload, and look after one's own pool.
    Publish,
    /// Reserve, spend and release the packages of others.
    Reserve,
    /// Read the events of every pool.
    Audit,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Publish, Self::Reserve, Self::Audit];

    /// The name in the `scope` claim.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "keypool.publish",
            Self::Reserve => "keypool.reserve",
            Self::Audit => "keypool.audit",
        }
    }

    /// The scope of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scopes of a token. Those of other services are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// From a `scope` claim: names separated by spaces (RFC 8693, section 4.2).
    pub(super) fn parse(claim: &str) -> Self {
        Self(Scope::ALL.into_iter().filter(|s| claim.split(' ').any(|n| n == s.as_str())).collect())
    }

    /// Whether `scope` is among them.
    pub fn contains(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }
}

/// Who calls, as the token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The calling client and its user.
    pub key: ClientKey,
    /// What it may do.
    pub scopes: Scopes,
}

impl Caller {
    /// Passes a caller that has `scope`.
    ///
    /// # Errors
    /// [`Error::ScopeMissing`].
    pub fn require(&self, scope: Scope) -> Result<(), Error> {
        self.scopes.contains(scope).then_some(()).ok_or(Error::ScopeMissing(scope.as_str()))
    }
}
