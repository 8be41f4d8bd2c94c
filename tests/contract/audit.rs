//! What the log says agrees with what the clients saw.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use keypool_service::{
    domain::{
        clock::{Clock as _, SystemClock},
        event::{Event, EventKind},
        ids::{ClientKey, KeyPackageRef},
        key_package::UploadPolicy,
        policy::PoolPolicy,
    },
    pool::{EventRequest, KeyPool, ReserveRequest, Selection, SweepPolicy, UploadMode},
    store::{EventPools, MIGRATOR},
};
use keypool_testing::{
    contract::{Device, ask, client, group, replica},
    database::TestDatabase,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use time::Duration;

const CLIENTS: u64 = 8;
const OPERATIONS: usize = 50;

/// What a client was answered.
struct Seen {
    caller: ClientKey,
    key_package_ref: KeyPackageRef,
    last_resort: bool,
}

/// One client: it looks after its own pool and adds the others.
async fn work(pool: KeyPool, number: u64) -> HashMap<String, Seen> {
    let mut random = StdRng::seed_from_u64(number);
    let name = |n: u64| (format!("user-{}", n % 4), format!("client-{}", n / 4));
    let (user, own) = name(number);
    let now = u64::try_from(SystemClock.now().unix_timestamp()).unwrap();
    let fresh = || {
        let mut device = Device::new(&user, &own);
        device.forge = device.forge.valid_around(now);
        device
    };
    let mut device = fresh();
    let mut held: Vec<String> = Vec::new();
    let mut seen = HashMap::new();
    let ignored = |result: Result<(), keypool_service::domain::error::Error>| {
        use keypool_service::domain::error::Error;
        assert!(!matches!(result, Err(Error::Internal(_))), "{result:?}");
    };
    for _ in 0..OPERATIONS {
        match random.random_range(0..20) {
            0..3 => {
                let packages = device.packages(random.random_range(1..6));
                pool.upload(&device.key, packages, UploadMode::Add).await.unwrap();
            }
            3 => {
                let packages = vec![device.last_resort()];
                pool.upload(&device.key, packages, UploadMode::Add).await.unwrap();
            }
            4 => {
                device = fresh();
                let packages = device.packages(4);
                let mode = UploadMode::ReplaceOtherCredentials;
                pool.upload(&device.key, packages, mode).await.unwrap();
            }
            5 => drop(pool.revoke(&device.key, None, Selection::All).await.unwrap()),
            6 => drop(pool.sweep(&SweepPolicy::default()).await.unwrap()),
            7..14 => {
                let (user, of) = name(random.random_range(0..CLIENTS));
                let short = random.random_bool(0.5);
                let request = ReserveRequest {
                    ttl: Some(if short { Duration::MILLISECOND } else { Duration::MINUTE }),
                    ..ask(&client(&user, &of))
                };
                let Ok(results) = pool.reserve(&device.key, &request).await else { continue };
                for got in results.into_iter().filter_map(|result| result.outcome.ok()) {
                    held.push(got.id.clone());
                    let what = Seen {
                        caller: device.key.clone(),
                        key_package_ref: got.key_package_ref,
                        last_resort: got.last_resort,
                    };
                    assert!(seen.insert(got.id, what).is_none(), "an id twice");
                }
            }
            14..18 if !held.is_empty() => {
                let id = held[random.random_range(0..held.len())].clone();
                ignored(pool.spend(&device.key, &[id], &group()).await.map(drop));
            }
            _ if !held.is_empty() => {
                let id = held[random.random_range(0..held.len())].clone();
                ignored(pool.release(&device.key, &[id]).await.map(drop));
            }
            _ => {}
        }
    }
    seen
}

async fn whole_log(pool: &KeyPool) -> Vec<(Event, Option<String>)> {
    let (mut log, mut after) = (Vec::new(), None);
    loop {
        let request = EventRequest {
            pools: EventPools::All,
            from: None,
            before: None,
            key_package_ref: None,
            after,
            page_size: 97,
        };
        let page = pool.events(request).await.unwrap();
        log.extend(page.events);
        after = page.next;
        if after.is_none() {
            return log;
        }
    }
}

/// Where a one-time package stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Nowhere,
    /// With the generation whose holder may still spend it.
    Available(Option<i32>),
    Reserved(i32),
    /// Revoked while it was reserved.
    Withdrawn(i32),
    Over,
}

/// The state after one more event; none when there is no such step.
fn step(from: State, kind: EventKind, generation: i32, before: i32) -> Option<State> {
    use State::{Available, Nowhere, Over, Reserved, Withdrawn};
    let same = |held: i32| held == generation;
    match (from, kind) {
        (Nowhere, EventKind::Uploaded) if generation == 0 => Some(Available(None)),
        (Available(_), EventKind::Reserved) if generation == before + 1 => {
            Some(Reserved(generation))
        }
        (Reserved(held), EventKind::Released) if same(held) => Some(Available(None)),
        (Reserved(held), EventKind::Lapsed) if same(held) => Some(Available(Some(held))),
        (Reserved(held) | Available(Some(held)) | Withdrawn(held), EventKind::Spent)
            if same(held) =>
        {
            Some(Over)
        }
        (Reserved(held), EventKind::Revoked) if same(held) => Some(Withdrawn(held)),
        (Available(_), EventKind::Revoked) if generation == before => Some(Over),
        (Withdrawn(held), EventKind::Released | EventKind::Lapsed) if same(held) => Some(Over),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_eight_clients_do_at_random() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let policy = PoolPolicy { fair_share: false, ..PoolPolicy::default() };
    let clock = Arc::new(SystemClock);
    let open = || {
        let upload = UploadPolicy::default();
        replica(database.url(), clock.clone(), policy.clone(), upload)
    };
    let (a, b) = (open().await, open().await);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(work(if n % 2 == 0 { a.clone() } else { b.clone() }, n)))
        .collect();
    let mut seen = HashMap::new();
    for client in clients {
        seen.extend(client.await.unwrap());
    }
    assert!(seen.len() > 20, "too little happened: {}", seen.len());

    let mut log = whole_log(&a).await;
    assert!(log.is_sorted_by_key(|(event, _)| std::cmp::Reverse(event.key.at)), "newest first");
    log.reverse();

    // Every reservation that a client was answered is there once, and no other.
    let mut issued = HashSet::new();
    for (event, id) in &log {
        let kind = event.key.kind;
        if matches!(kind, EventKind::Reserved | EventKind::LastResortIssued) {
            let id = id.clone().expect("a reservation");
            let what = seen.get(&id).expect("a reservation that was answered");
            assert_eq!(event.actor.as_ref(), Some(&what.caller));
            assert_eq!(event.key_package_ref, what.key_package_ref);
            assert_eq!(kind == EventKind::LastResortIssued, what.last_resort);
            assert_eq!(event.group_id.as_deref(), Some(group().as_bytes()));
            assert!(issued.insert(id), "issued twice");
        }
    }
    assert_eq!(issued.len(), seen.len());

    let mut histories: BTreeMap<KeyPackageRef, Vec<&Event>> = BTreeMap::new();
    for (event, _) in &log {
        histories.entry(event.key_package_ref.clone()).or_default().push(event);
    }
    let last_resorts: HashSet<&KeyPackageRef> =
        seen.values().filter(|s| s.last_resort).map(|s| &s.key_package_ref).collect();
    let mut kinds = HashSet::new();
    for (of, mut history) in histories {
        history.sort_by_key(|event| (event.key.at, event.key.locator.generation));
        kinds.extend(history.iter().map(|event| event.key.kind));
        if last_resorts.contains(&of) {
            assert_eq!(history[0].key.kind, EventKind::Uploaded);
            continue;
        }
        let (mut state, mut generation) = (State::Nowhere, 0);
        for event in &history {
            let now = event.key.locator.generation;
            let next = step(state, event.key.kind, now, generation);
            let told: Vec<_> =
                history.iter().map(|e| (e.key.kind, e.key.locator.generation)).collect();
            state = next.unwrap_or_else(|| panic!("{state:?} then {:?}: {told:?}", event.key.kind));
            generation = now;
        }
    }
    for kind in [
        EventKind::Uploaded,
        EventKind::Reserved,
        EventKind::Spent,
        EventKind::Released,
        EventKind::Lapsed,
        EventKind::Revoked,
        EventKind::LastResortIssued,
    ] {
        assert!(kinds.contains(&kind), "{kind:?} never happened");
    }
}
