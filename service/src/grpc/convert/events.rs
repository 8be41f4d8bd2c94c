//! ListPoolEvents.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_proto::v1;
use prost_types::Timestamp;
use time::OffsetDateTime;

use super::{Violations, revoke::is_ref, timestamp};
use crate::{
    domain::{
        error::Error,
        event::{Event, EventKey, EventKind},
        ids::{ClientId, ClientKey, KeyPackageRef, UserId},
        reservation_id::Locator,
    },
    grpc::auth::{Caller, Scope},
    pool::{EventPage, EventPools, EventRequest},
};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

pub(in crate::grpc) fn event_request(
    caller: &Caller,
    request: v1::ListPoolEventsRequest,
) -> Result<EventRequest, Error> {
    let mut wrong = Violations::default();
    let user = match request.user_id {
        id if id.is_empty() => None,
        id => wrong.expect("user_id", UserId::parse(id)),
    };
    let client = match request.client_id {
        id if id.is_empty() => None,
        id => wrong.expect("client_id", ClientId::parse(id)),
    };
    let key_package_ref = Some(request.key_package_ref).filter(|r| !r.is_empty());
    if key_package_ref.as_ref().is_some_and(|r| !is_ref(r)) {
        wrong.add("key_package_ref", "must have 32, 48 or 64 bytes");
    }
    let mut time = |field, given: Option<Timestamp>| {
        wrong.expect(field, given.map(parse_timestamp).transpose()).flatten()
    };
    let (from, before) =
        (time("start_time", request.start_time), time("end_time", request.end_time));
    let page_size = match u32::try_from(request.page_size) {
        Ok(0) => DEFAULT_PAGE,
        Ok(size) => size.min(MAX_PAGE),
        Err(_) => {
            wrong.add("page_size", "must not be negative");
            DEFAULT_PAGE
        }
    };
    let token = Some(request.page_token).filter(|token| !token.is_empty());
    let after = token.map(|token| parse_token(&token).ok_or("is not a next_page_token"));
    let after = wrong.expect("page_token", after.transpose()).flatten();
    if user.is_none() && client.is_some() && caller.scopes.contains(Scope::Audit) {
        wrong.add("user_id", "must be given where client_id is");
    }
    wrong.into_result()?;
    Ok(EventRequest {
        pools: pools(caller, user, client)?,
        from,
        before,
        key_package_ref: key_package_ref.map(|r| KeyPackageRef(r.into())),
        after,
        page_size,
    })
}

/// An auditor names any pools or none; anyone else has its own.
fn pools(
    caller: &Caller,
    user: Option<UserId>,
    client: Option<ClientId>,
) -> Result<EventPools, Error> {
    if !caller.scopes.contains(Scope::Audit) {
        let ClientKey { user: own_user, client: own_client } = &caller.key;
        let own = user.is_none_or(|user| user == *own_user)
            && client.is_none_or(|client| client == *own_client);
        return if own {
            Ok(EventPools::Client(caller.key.clone()))
        } else {
            Err(Error::NotYourPool)
        };
    }
    Ok(match (user, client) {
        (Some(user), Some(client)) => EventPools::Client(ClientKey { user, client }),
        (Some(user), None) => EventPools::User(user),
        (None, _) => EventPools::All,
    })
}

fn parse_timestamp(given: Timestamp) -> Result<OffsetDateTime, &'static str> {
    let nanos = i128::from(given.seconds) * 1_000_000_000 + i128::from(given.nanos);
    Some(given.nanos)
        .filter(|nanos| (0..1_000_000_000).contains(nanos))
        .and_then(|_| storable(nanos))
        .ok_or("must be a time between the years 1 and 9999")
}

/// The time so many nanoseconds after 1970, if Postgres can hold it.
fn storable(nanos: i128) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    (1..=9999).contains(&time.year()).then_some(time)
}

/// The microseconds since 1970, the kind and the locator of a page's last event.
fn token(key: &EventKey) -> String {
    let micros = key.at.unix_timestamp_nanos() / 1000;
    URL_SAFE_NO_PAD.encode(
        format!("{micros} {} ", key.kind.as_str())
            .into_bytes()
            .into_iter()
            .chain(key.locator.encode())
            .collect::<Vec<u8>>(),
    )
}

fn parse_token(token: &str) -> Option<EventKey> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let mut parts = bytes.splitn(3, |byte| *byte == b' ');
    let micros: i64 = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let kind = EventKind::from_name(std::str::from_utf8(parts.next()?).ok()?)?;
    let locator = Locator::decode(parts.next()?)?;
    let at = storable(i128::from(micros) * 1000)?;
    Some(EventKey { at, locator, kind })
}

pub(in crate::grpc) fn event_page(page: EventPage) -> v1::ListPoolEventsResponse {
    v1::ListPoolEventsResponse {
        next_page_token: page.next.as_ref().map(token).unwrap_or_default(),
        events: page.events.into_iter().map(|(event, id)| pool_event(event, id)).collect(),
    }
}

fn pool_event(event: Event, reservation_id: Option<String>) -> v1::PoolEvent {
    let (actor_user_id, actor_client_id) = event
        .actor
        .map(|actor| (actor.user.to_string(), actor.client.to_string()))
        .unwrap_or_default();
    v1::PoolEvent {
        time: Some(timestamp(event.key.at)),
        user_id: event.owner.user.to_string(),
        client_id: event.owner.client.to_string(),
        cipher_suite: event.key.locator.suite.cipher_suite.0.into(),
        key_package_ref: event.key_package_ref.0.into(),
        kind: kind(event.key.kind).into(),
        actor_user_id,
        actor_client_id,
        group_id: event.group_id.unwrap_or_default().into(),
        reservation_id: reservation_id.unwrap_or_default(),
    }
}

fn kind(kind: EventKind) -> v1::PoolEventKind {
    match kind {
        EventKind::Uploaded => v1::PoolEventKind::Uploaded,
        EventKind::Reserved => v1::PoolEventKind::Reserved,
        EventKind::Spent => v1::PoolEventKind::Spent,
        EventKind::Released => v1::PoolEventKind::Released,
        EventKind::Lapsed => v1::PoolEventKind::Lapsed,
        EventKind::Burned => v1::PoolEventKind::Burned,
        EventKind::Revoked => v1::PoolEventKind::Revoked,
        EventKind::Expired => v1::PoolEventKind::Expired,
        EventKind::LastResortIssued => v1::PoolEventKind::LastResortIssued,
    }
}
