//! What was answered outlives the server that answered it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use keypool_client::v1::Reservation;
use keypool_testing::server::until;

use super::*;

#[tokio::test]
async fn a_server_killed_between_reserve_and_spend_loses_nothing() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    publish_some(&server, "bob", 3).await;
    let alice = server.client("alice", "phone").await;
    let request = one_of("bob");
    let reservation = reserve_one(&alice, &request).await;
    server.kill().await;

    let server = Server::start(&database, &options()).await;
    let alice = server.client("alice", "phone").await;
    assert_eq!(reserve_one(&alice, &request).await, reservation, "the lost answer, again");
    let spent = alice.spend(GROUP, [reservation.reservation_id]).await.unwrap();
    assert!(!spent[0].already_spent);
    let counts = counts(&server.client("bob", "phone").await).await;
    assert_eq!((counts.available, counts.reserved, counts.spent), (2, 0, 1));
}

/// Reserves until the server dies, and answers the request that got no answer.
async fn reserve_on(alice: Client, answered: Arc<Mutex<Vec<Reservation>>>) -> Option<Reserve> {
    loop {
        let request = one_of("bob").ttl(std::time::Duration::from_secs(600));
        match alice.reserve(&request).await {
            Ok(answer) => {
                let reservation = answer.results[0].reservation().unwrap().clone();
                answered.lock().unwrap().push(reservation);
            }
            Err(Error::PoolExhausted(_)) => return None,
            Err(_) => return Some(request),
        }
    }
}

#[tokio::test]
async fn a_server_killed_under_load_loses_nothing_and_gives_nothing_twice() {
    const ADDERS: usize = 16;
    const STOCK: usize = 300;
    let database = database().await;
    let large = options().set("pool.hard_cap", STOCK);
    let server = Server::start(&database, &large).await;
    let bob = server.client("bob", "phone").await;
    for batch in packages("bob", STOCK).chunks(100) {
        publish(&bob, batch.to_vec()).await;
    }
    let mut adders = Vec::new();
    for n in 0..ADDERS {
        let answered = Arc::default();
        let alice = server.client("alice", &n.to_string()).await;
        let unanswered = tokio::spawn(reserve_on(alice, Arc::clone(&answered)));
        adders.push((n, answered, unanswered));
    }
    let so_far = |adders: &[(usize, Arc<Mutex<Vec<Reservation>>>, _)]| {
        adders.iter().map(|(_, answered, _)| answered.lock().unwrap().len()).sum::<usize>()
    };
    until(async || so_far(&adders) >= 40).await;
    server.kill().await;

    let server = Server::start(&database, &large).await;
    let mut refs = HashSet::new();
    let (mut spent, mut repeated) = (0, 0);
    for (n, answered, unanswered) in adders {
        let alice = server.client("alice", &n.to_string()).await;
        let request = unanswered.await.unwrap();
        if let Some(request) = request {
            // Whether it had taken effect or not, it names one reservation now.
            let reservation = reserve_one(&alice, &request).await;
            answered.lock().unwrap().push(reservation);
            repeated += 1;
        }
        let answered = answered.lock().unwrap().clone();
        for reservation in answered {
            assert!(refs.insert(reservation.key_package_ref.clone()), "given out twice");
            let id = [&reservation.reservation_id];
            assert!(!alice.spend(GROUP, id).await.unwrap()[0].already_spent);
            spent += 1;
        }
    }
    assert!(repeated > 0, "the stock was gone before the server was");
    let counts = counts(&server.client("bob", "phone").await).await;
    assert_eq!(counts.spent, spent);
    assert_eq!(counts.reserved, 0, "every request was repeated");
    assert_eq!(u64::from(counts.available) + spent, STOCK as u64);
}
