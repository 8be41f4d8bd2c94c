//! The calls that are made, and what their answers have to be.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderValue, Uri};
use keypool_proto::v1::{
    ReserveKeyPackagesRequest, ReserveKeyPackagesResponse, Target, reserve_result,
};
use uuid::Uuid;

use crate::{
    callers::{GROUP_ID, OWNER_PREFIX, TTL, authorization},
    connection::{Connection, frame},
    packages::CIPHER_SUITE,
};

/// Callers, as many as the server remembers the tokens of. A prime: none meets an owner twice.
const CALLERS: usize = 1009;

/// Calls that are made before they are needed: the load shares the cores with the server.
pub(super) struct Calls {
    tokens: Vec<HeaderValue>,
    frames: Vec<(HeaderValue, Bytes, usize)>,
    clients: usize,
    blocks: usize,
    made: usize,
}

impl Calls {
    pub(super) fn new(owners: u32, clients: usize) -> anyhow::Result<Self> {
        let token = |n| authorization(&format!("caller-{n}"));
        let tokens = (0..CALLERS).map(token).collect::<anyhow::Result<_>>()?;
        let blocks = usize::try_from(owners)? / clients;
        ensure!(blocks > 0, "fewer owners than a call reserves from");
        Ok(Self { tokens, frames: Vec::new(), clients, blocks, made: 0 })
    }

    /// The next so many calls.
    pub(super) fn make(
        &mut self,
        count: usize,
    ) -> anyhow::Result<Arc<[(HeaderValue, Bytes, usize)]>> {
        self.frames.clear();
        for _ in 0..count {
            let token = self.tokens.get(self.made % CALLERS).context("a token")?.clone();
            let block = self.made % self.blocks;
            let owner = |n: usize| format!("{OWNER_PREFIX}{:06}", block * self.clients + n + 1);
            let request = ReserveKeyPackagesRequest {
                request_id: Uuid::new_v4().to_string(),
                group_id: GROUP_ID.into(),
                cipher_suite: CIPHER_SUITE.into(),
                targets: (0..self.clients)
                    .map(|n| Target { user_id: owner(n), client_ids: vec!["phone".into()] })
                    .collect(),
                ttl: Some(TTL.try_into()?),
                ..ReserveKeyPackagesRequest::default()
            };
            self.frames.push((token, frame(&request)?, block));
            self.made += 1;
        }
        Ok(std::mem::take(&mut self.frames).into())
    }
}

/// Makes one call and looks at its answer.
pub(super) async fn reserve(
    connection: &Connection,
    uri: &Uri,
    call: &(HeaderValue, Bytes, usize),
    clients: usize,
) -> anyhow::Result<Vec<Bytes>> {
    let (token, frame, block) = call;
    let answer: ReserveKeyPackagesResponse = connection.send(uri, token, frame.clone()).await?;
    ensure!(answer.results.len() == clients, "{} results", answer.results.len());
    let mut refs = Vec::with_capacity(clients);
    for (n, result) in answer.results.into_iter().enumerate() {
        let owner = result.user_id.strip_prefix(OWNER_PREFIX).context("another user")?;
        ensure!(owner.parse::<usize>()? == block * clients + n + 1, "another user's package");
        let Some(reserve_result::Outcome::Reservation(reservation)) = result.outcome else {
            anyhow::bail!("no reservation: {:?}", result.outcome);
        };
        ensure!(!reservation.last_resort, "a last resort package while stock was left");
        refs.push(reservation.key_package_ref);
    }
    Ok(refs)
}
