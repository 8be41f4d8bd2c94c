//! How a credential names a client.

use thiserror::Error;

use crate::domain::ids::ClientKey;

/// What a credential must call its client: text in which `{user_id}` and `{client_id}` stand for
/// the caller's ids.
///
/// A separator between the two tells clients apart only if it occurs in no user_id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    UserId,
    ClientId,
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidTemplate {
    /// A name in braces that stands for nothing.
    #[error("`{{{0}}}` is unknown: only {{user_id}} and {{client_id}} are placeholders")]
    UnknownPlaceholder(String),
    /// A brace without its counterpart.
    #[error("a brace without its counterpart")]
    UnbalancedBrace,
    /// A template that would accept one user's credential from another.
    #[error("{{user_id}} is missing")]
    UserIdMissing,
}

impl IdentityTemplate {
    /// Reads a template such as `{user_id}/{client_id}`, which must contain `{user_id}`.
    pub fn parse(template: &str) -> Result<Self, InvalidTemplate> {
        let mut parts = Vec::new();
        let mut rest = template;
        while !rest.is_empty() {
            let (text, after) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            if after.is_empty() {
                break;
            }
            let inside = after.strip_prefix('{').ok_or(InvalidTemplate::UnbalancedBrace)?;
            let (name, after) = inside.split_once('}').ok_or(InvalidTemplate::UnbalancedBrace)?;
            parts.push(match name {
                "user_id" => Part::UserId,
                "client_id" => Part::ClientId,
                other => return Err(InvalidTemplate::UnknownPlaceholder(other.to_owned())),
            });
            rest = after;
        }
        if !parts.contains(&Part::UserId) {
            return Err(InvalidTemplate::UserIdMissing);
        }
        Ok(Self(parts))
    }

    /// Whether `identity` is the template filled in for `caller`.
    pub(super) fn matches(&self, identity: &[u8], caller: &ClientKey) -> bool {
        let rest = self.0.iter().try_fold(identity, |rest, part| {
            rest.strip_prefix(match part {
                Part::Text(text) => text.as_bytes(),
                Part::UserId => caller.user.as_str().as_bytes(),
                Part::ClientId => caller.client.as_str().as_bytes(),
            })
        });
        rest == Some(&[])
    }
}

impl Default for IdentityTemplate {
    /// `{user_id}`.
    fn default() -> Self {
        Self(vec![Part::UserId])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{ClientId, UserId};

    #[test]
    fn only_the_filled_in_template_matches() {
        let caller = ClientKey {
            user: UserId::parse("alice").unwrap(),
            client: ClientId::parse("phone").unwrap(),
        };
        let template = IdentityTemplate::parse("mls:{user_id}/{client_id}!").unwrap();
        assert!(template.matches(b"mls:alice/phone!", &caller));
        for other in ["", "mls:alice/phone", "mls:alice/phone!!", "mls:alice/tablet!", "alice"] {
            assert!(!template.matches(other.as_bytes(), &caller), "{other}");
        }
        assert!(IdentityTemplate::default().matches(b"alice", &caller));
        assert!(!IdentityTemplate::default().matches(b"bob", &caller));
    }

    #[test]
    fn wrong_templates_are_refused_with_their_reason() {
        for (template, message) in [
            ("{user}", "`{user}` is unknown: only {user_id} and {client_id} are placeholders"),
            ("{user_id", "a brace without its counterpart"),
            ("user_id}", "a brace without its counterpart"),
            ("{client_id}", "{user_id} is missing"),
            ("", "{user_id} is missing"),
        ] {
            assert_eq!(IdentityTemplate::parse(template).unwrap_err().to_string(), message);
        }
        assert_eq!(IdentityTemplate::parse("{user_id}"), Ok(IdentityTemplate::default()));
    }
}
