//! Nobody drains a pool alone: how much of it a caller may hold, and what is kept for newcomers.

use keypool_service::{
    domain::{error::Error, ids::ClientKey, policy::PoolPolicy},
    pool::{KeyPool, Reservation, ReserveRequest, Selection, Target, Unavailable},
};
use keypool_testing::contract::{Device, Ground, adder, ask, group, reserve};
use time::Duration;

/// So many that 64 of one caller, or one of each of 64 callers, come at once.
const CALLS: usize = 64;
/// The default.
const LOW_WATERMARK: usize = 8;

async fn fair() -> Ground {
    Ground::new(PoolPolicy::default()).await
}

fn one_time(owner: &ClientKey) -> ReserveRequest {
    ReserveRequest { last_resort: false, ..ask(owner) }
}

/// All these calls at once, by turns on both replicas.
async fn at_once(
    ground: &Ground,
    calls: impl Iterator<Item = (ClientKey, ReserveRequest)>,
) -> Vec<Result<Reservation, Error>> {
    let calls: Vec<_> = calls
        .enumerate()
        .map(|(n, (caller, request))| {
            let pool = if n % 2 == 0 { ground.a.clone() } else { ground.b.clone() };
            tokio::spawn(async move { reserve(&pool, &caller, &request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

/// Draws one package of the pool and spends it.
async fn draw(pool: &KeyPool, caller: &ClientKey, owner: &ClientKey) -> Reservation {
    let got = reserve(pool, caller, &one_time(owner)).await.unwrap();
    pool.spend(caller, std::slice::from_ref(&got.id), &group()).await.unwrap();
    got
}

#[track_caller]
fn quota<T: std::fmt::Debug>(answer: &Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Quota)), "{answer:?}");
}

#[track_caller]
fn exhausted<T: std::fmt::Debug>(answer: &Result<T, Error>) {
    assert!(matches!(answer, Err(Error::PoolExhausted)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_calls_of_one_caller_two_reserve() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 32).await;
    // The first draw of the pool by this caller, and later ones.
    for _ in 0..2 {
        let calls = (0..CALLS).map(|_| (adder(0), ask(&bob.key)));
        let (got, refused): (Vec<_>, Vec<_>) =
            at_once(&ground, calls).await.into_iter().partition(Result::is_ok);
        refused.iter().for_each(quota);
        assert_eq!(got.len(), 2);
        assert_eq!(ground.counts(&bob.key).await.reserved, 2);
        let ids: Vec<String> = got.into_iter().map(|got| got.unwrap().id).collect();
        ground.a.spend(&adder(0), &ids, &group()).await.unwrap();
    }
    assert_eq!(ground.counts(&bob.key).await.available, 28);
}

#[tokio::test]
async fn a_spend_a_release_and_a_lapse_free_a_place() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 32).await;
    let caller = adder(0);
    let again = || ground.reserve(&caller, &bob.key);
    let (first, second) = (again().await.unwrap(), again().await.unwrap());
    quota(&again().await);
    ground.a.spend(&adder(0), &[first.id], &group()).await.unwrap();
    again().await.unwrap();
    quota(&again().await);
    ground.a.release(&adder(0), &[second.id]).await.unwrap();
    again().await.unwrap();
    quota(&again().await);
    ground.pass(Duration::seconds(59));
    quota(&again().await);
    ground.pass(Duration::seconds(1));
    again().await.unwrap();
    again().await.unwrap();
    quota(&again().await);
    // Each pool by itself, and each caller.
    let mut carol = Device::new("carol", "phone");
    ground.stock(&mut carol, 9).await;
    ground.reserve(&adder(0), &carol.key).await.unwrap();
    ground.reserve(&adder(1), &bob.key).await.unwrap();
}

#[tokio::test]
async fn last_resort_grants_count() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock_last_resort(&mut bob).await;
    let (caller, owner) = (adder(0), bob.key.clone());
    let again = || ground.reserve(&caller, &owner);
    let first = again().await.unwrap();
    assert!(first.last_resort && again().await.unwrap().last_resort);
    quota(&again().await);
    ground.a.spend(&adder(0), &[first.id], &group()).await.unwrap();
    let third = again().await.unwrap();
    assert!(third.last_resort);
    quota(&again().await);
    // Of a package that is gone as well: by its replacement, and by a Revoke.
    ground.stock_last_resort(&mut bob).await;
    quota(&again().await);
    ground.a.revoke(&bob.key, None, Selection::All).await.unwrap();
    ground.stock_last_resort(&mut bob).await;
    quota(&again().await);
    ground.a.release(&caller, &[third.id]).await.unwrap();
    assert!(again().await.unwrap().last_resort);
    quota(&again().await);
    ground.pass(Duration::seconds(60));
    assert!(again().await.unwrap().last_resort);
}

#[tokio::test]
async fn a_request_for_a_last_resort_package_that_is_gone_gets_another_one() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    let gone = ground.stock_last_resort(&mut bob).await;
    let request = ask(&bob.key);
    let first = reserve(&ground.a, &adder(0), &request).await.unwrap();
    assert_eq!(first.key_package_ref, gone);
    let current = ground.stock_last_resort(&mut bob).await;
    let second = reserve(&ground.b, &adder(0), &request).await.unwrap();
    assert_eq!(second.key_package_ref, current);
    // From now on the same one; the caller holds both.
    assert_eq!(reserve(&ground.a, &adder(0), &request).await.unwrap().id, second.id);
    quota(&ground.reserve(&adder(0), &bob.key).await);
    ground.a.spend(&adder(0), &[first.id, second.id], &group()).await.unwrap();
}

#[tokio::test]
async fn several_targets_are_judged_one_by_one() {
    let ground = fair().await;
    let mut full = Device::new("bob", "phone");
    let mut free = Device::new("bob", "tablet");
    let mut other = Device::new("carol", "phone");
    for device in [&mut full, &mut free, &mut other] {
        ground.stock(device, 16).await;
    }
    for _ in 0..2 {
        ground.reserve(&adder(0), &full.key).await.unwrap();
    }
    let every = || {
        let target = |user: &ClientKey| Target { user: user.user.clone(), clients: Vec::new() };
        ReserveRequest { targets: vec![target(&full.key), target(&other.key)], ..ask(&full.key) }
    };
    let results = ground.a.reserve(&adder(0), &every()).await.unwrap();
    let refused = |at: usize| results[at].outcome.as_ref().err().copied();
    assert_eq!([refused(0), refused(1), refused(2)], [Some(Unavailable::Quota), None, None]);
    let all = ReserveRequest { all_or_nothing: true, ..every() };
    quota(&ground.a.reserve(&adder(0), &all).await);
    assert_eq!(ground.counts(&other.key).await.reserved, 1);
}

#[tokio::test]
async fn the_last_ones_are_for_newcomers() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, LOW_WATERMARK + 2).await;
    // Above the low watermark anyone draws again, down to it.
    draw(&ground.a, &adder(0), &bob.key).await;
    draw(&ground.a, &adder(0), &bob.key).await;
    assert_eq!(ground.counts(&bob.key).await.available, 8);
    exhausted(&ground.reserve(&adder(0), &bob.key).await);
    let last_resort = ground.stock_last_resort(&mut bob).await;
    let granted = ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert_eq!((granted.last_resort, granted.key_package_ref), (true, last_resort));
    exhausted(&reserve(&ground.b, &adder(0), &one_time(&bob.key)).await);
    // Newcomers have them all, each one.
    for n in 1..=LOW_WATERMARK {
        assert!(!draw(&ground.b, &adder(n), &bob.key).await.key_package_ref.0.is_empty());
        assert!(ground.reserve(&adder(n), &bob.key).await.unwrap().last_resort);
    }
    assert_eq!(ground.counts(&bob.key).await.available, 0);
}

#[tokio::test]
async fn a_day_after_the_last_draw_one_is_a_newcomer_again() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, LOW_WATERMARK).await;
    draw(&ground.a, &adder(0), &bob.key).await;
    ground.pass(Duration::hours(24) - Duration::MICROSECOND);
    ground.sweep().await;
    exhausted(&ground.reserve(&adder(0), &bob.key).await);
    ground.pass(Duration::MICROSECOND);
    draw(&ground.a, &adder(0), &bob.key).await;
    exhausted(&ground.reserve(&adder(0), &bob.key).await);
}

/// What a caller gives back it has drawn all the same: else it could see the whole pool.
#[tokio::test]
async fn a_released_or_lapsed_draw_counts() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, LOW_WATERMARK).await;
    let released = ground.reserve(&adder(0), &bob.key).await.unwrap();
    ground.a.release(&adder(0), &[released.id]).await.unwrap();
    exhausted(&ground.reserve(&adder(0), &bob.key).await);
    ground.reserve(&adder(1), &bob.key).await.unwrap();
    ground.pass(Duration::minutes(5));
    ground.sweep().await;
    exhausted(&ground.reserve(&adder(1), &bob.key).await);
    ground.reserve(&adder(2), &bob.key).await.unwrap();
}

#[tokio::test]
async fn whoever_got_the_last_resort_only_is_still_a_newcomer() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock_last_resort(&mut bob).await;
    let granted = ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert!(granted.last_resort);
    ground.stock(&mut bob, 1).await;
    assert!(!ground.reserve(&adder(0), &bob.key).await.unwrap().last_resort);
}

#[tokio::test]
async fn switched_off_neither_holds() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 5).await;
    for _ in 0..5 {
        ground.reserve(&adder(0), &bob.key).await.unwrap();
    }
    exhausted(&ground.reserve(&adder(0), &bob.key).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_repeat_drawers_none_gets_one_of_the_last() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, CALLS).await;
    let requests = || (0..CALLS).map(|n| (adder(n), one_time(&bob.key)));
    for (n, got) in at_once(&ground, requests()).await.into_iter().enumerate() {
        ground.a.release(&adder(n), &[got.unwrap().id]).await.unwrap();
    }
    assert_eq!(ground.counts(&bob.key).await.available, 64);
    let (got, refused): (Vec<_>, Vec<_>) =
        at_once(&ground, requests()).await.into_iter().partition(Result::is_ok);
    refused.iter().for_each(exhausted);
    assert_eq!((got.len(), refused.len()), (CALLS - LOW_WATERMARK, LOW_WATERMARK));
    assert_eq!(ground.counts(&bob.key).await.available, 8);

    // And none while as many newcomers take what is theirs.
    let both = (0..CALLS).flat_map(|n| [n, 1000 + n]).map(|n| (adder(n), one_time(&bob.key)));
    let answers = at_once(&ground, both).await;
    for (n, answer) in answers.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        assert!(answer.is_err(), "{n}: {answer:?}");
    }
    let newcomers = answers.iter().skip(1).step_by(2);
    assert_eq!(newcomers.filter(|answer| answer.is_ok()).count(), LOW_WATERMARK);
    assert_eq!(ground.counts(&bob.key).await.available, 0);
}

/// Another call is taking the one above the low watermark: a repeat drawer waits for how that
/// ends rather than takes the next.
#[tokio::test]
async fn one_that_is_being_taken_is_not_counted_twice() {
    let ground = fair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, LOW_WATERMARK + 2).await;
    draw(&ground.a, &adder(0), &bob.key).await;
    let mut taking = ground.database.pool.begin().await.unwrap();
    sqlx::query("DELETE FROM package WHERE seq = (SELECT max(seq) FROM package)")
        .execute(&mut *taking)
        .await
        .unwrap();
    let answer = reserve(&ground.a, &adder(0), &one_time(&bob.key)).await;
    assert!(matches!(answer, Err(Error::Overloaded)), "{answer:?}");
    taking.commit().await.unwrap();
    exhausted(&reserve(&ground.a, &adder(0), &one_time(&bob.key)).await);
    assert!(reserve(&ground.b, &adder(1), &one_time(&bob.key)).await.is_ok());
}
