use std::{collections::HashSet, fmt, time::Duration};

use bytes::Bytes;
use keypool_proto::v1;
use openmls::prelude::{MlsGroup, SignaturePublicKey};
use uuid::Uuid;

/// What an adder asks for: one KeyPackage for each client of each target user.
///
/// It names itself by a fresh request_id. Sending the same `Reserve` again, after a time-out or
/// from another process, gives the same reservations while they live and burns no package.
///
/// ```
/// # use std::time::Duration;
/// # use keypool_client::Reserve;
/// let reserve = Reserve::new(&b"group 7"[..], 1_u16)
///     .target("bob")
///     .target_clients("carol", ["phone"])
///     .ttl(Duration::from_secs(30));
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a Reserve does nothing until a Client sends it"]
pub struct Reserve {
    message: v1::ReserveKeyPackagesRequest,
    /// Signature keys of those who are in the group, who are not to be added again.
    members: HashSet<Vec<u8>>,
}

impl Reserve {
    /// Asks for packages for the MLS group `group_id` (1 to 255 bytes), which uses
    /// `cipher_suite` (RFC 9420, section 17.1; openmls's `Ciphersuite` will do).
    pub fn new(group_id: impl Into<Bytes>, cipher_suite: impl Into<u16>) -> Self {
        Self::of(v1::ReserveKeyPackagesRequest {
            request_id: Uuid::new_v4().to_string(),
            group_id: group_id.into(),
            cipher_suite: cipher_suite.into().into(),
            ..Default::default()
        })
    }

    /// Asks for packages that can be added to this group: of its cipher suite, with the
    /// capabilities that it requires (RFC 9420, section 11.1). [`Invites`](crate::Invites) leaves
    /// out clients that are in it already.
    pub fn for_group(group: &MlsGroup) -> Self {
        let reserve = Self::new(group.group_id().to_vec(), group.ciphersuite());
        let members = group.members().map(|member| member.signature_key).collect();
        let reserve = Self { members, ..reserve };
        let Some(required) = group.extensions().required_capabilities() else { return reserve };
        reserve.required_capabilities(v1::RequiredCapabilities {
            extension_types: numbers(required.extension_types()),
            proposal_types: numbers(required.proposal_types()),
            credential_types: numbers(required.credential_types()),
        })
    }

    pub(crate) fn of(message: v1::ReserveKeyPackagesRequest) -> Self {
        Self { message, members: HashSet::new() }
    }

    pub(crate) fn is_member(&self, key: &SignaturePublicKey) -> bool {
        self.members.contains(key.as_slice())
    }

    /// Adds every client of a user that has a pool. Name a user once, up to 100 of them.
    pub fn target(self, user_id: impl Into<String>) -> Self {
        self.target_clients(user_id, [] as [String; 0])
    }

    /// Adds these clients of a user; none means every one. Name a user once, up to 100 of them.
    pub fn target_clients<C: Into<String>>(
        mut self,
        user_id: impl Into<String>,
        client_ids: impl IntoIterator<Item = C>,
    ) -> Self {
        self.message.targets.push(v1::Target {
            user_id: user_id.into(),
            client_ids: client_ids.into_iter().map(Into::into).collect(),
        });
        self
    }

    /// Only takes packages whose leaf node can do this (RFC 9420, section 11.1).
    pub fn required_capabilities(mut self, required: v1::RequiredCapabilities) -> Self {
        self.message.required_capabilities = Some(required);
        self
    }

    /// How long the reservations live; 60 s unless set. The server cuts it to its cap.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        // The most a google.protobuf.Duration may say: 10,000 years.
        let longest = prost_types::Duration { seconds: 315_576_000_000, nanos: 0 };
        let ttl = prost_types::Duration::try_from(ttl).unwrap_or(longest);
        self.message.ttl = Some(if ttl.seconds < longest.seconds { ttl } else { longest });
        self
    }

    /// Takes no last resort package (RFC 9420, section 16.8) where no one-time one is left.
    pub fn forbid_last_resort(mut self) -> Self {
        self.message.last_resort = v1::LastResort::Forbid.into();
        self
    }

    /// Reserves nothing, and fails, unless every client can be served.
    pub fn all_or_nothing(mut self) -> Self {
        self.message.all_or_nothing = true;
        self
    }

    /// Sets the request_id, to repeat a request that an earlier process made.
    pub fn request_id(mut self, request_id: Uuid) -> Self {
        self.message.request_id = request_id.to_string();
        self
    }

    /// The message as it is sent.
    pub fn message(&self) -> &v1::ReserveKeyPackagesRequest {
        &self.message
    }
}

/// Shows neither group nor users.
impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve")
            .field("request_id", &self.message.request_id)
            .field("cipher_suite", &self.message.cipher_suite)
            .field("targets", &self.message.targets.len())
            .finish_non_exhaustive()
    }
}

fn numbers<T: Copy + Into<u16>>(types: &[T]) -> Vec<u32> {
    types.iter().map(|&it| it.into().into()).collect()
}
