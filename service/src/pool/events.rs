//! Owners and auditors read the event log.

use time::{Duration, OffsetDateTime};

use super::KeyPool;
use crate::{
    domain::{
        error::Error,
        event::{Event, EventKey},
        ids::KeyPackageRef,
    },
    store::{EventPools, EventQuery},
};

/// The log is not searched further back than this, which is longer than any retention.
const OLDEST: Duration = Duration::days(4000);

/// Which events.
#[derive(Debug)]
pub struct EventRequest {
    /// Of which pools.
    pub pools: EventPools,
    /// Not before this.
    pub from: Option<OffsetDateTime>,
    /// Before this.
    pub before: Option<OffsetDateTime>,
    /// Of this package only.
    pub key_package_ref: Option<KeyPackageRef>,
    /// After this one, which ended the last page.
    pub after: Option<EventKey>,
    /// How many at most.
    pub page_size: u32,
}

/// One page of the log.
#[derive(Debug)]
pub struct EventPage {
    /// The events, newest first, each with the id of the reservation it is about.
    pub events: Vec<(Event, Option<String>)>,
    /// What to ask for next; none after the last page.
    pub next: Option<EventKey>,
}

impl KeyPool {
    /// One page of the log, newest first.
    ///
    /// # Errors
    /// When the store cannot do it.
    pub async fn events(&self, request: EventRequest) -> Result<EventPage, Error> {
        let now = self.clock.now();
        // The database's clock may be ahead of this one.
        let newest = now.saturating_add(Duration::DAY);
        let query = EventQuery {
            pools: request.pools,
            from: request.from.unwrap_or(now.saturating_sub(OLDEST)),
            before: request.before.unwrap_or(newest).min(newest),
            key_package_ref: request.key_package_ref,
            after: request.after,
            limit: request.page_size.saturating_add(1),
        };
        let mut events = self.store.events(&query).await?;
        // usize has at least 32 bits where this runs.
        let page_size = request.page_size as usize;
        let more = events.len() > page_size;
        events.truncate(page_size);
        let next = events.last().filter(|_| more).map(|event| event.key);
        let with_id = |event: Event| {
            let id =
                event.holder.map(|holder| self.reservation_key.seal(&event.key.locator, holder));
            (event, id)
        };
        Ok(EventPage { events: events.into_iter().map(with_id).collect(), next })
    }
}
