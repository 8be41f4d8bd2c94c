//! No oracle: what an adder is told of a user who does not exist is what it is told of one whose pool
//! is exhausted, to the letter, and the database is asked the same.

use keypool_service::grpc::auth::Scope;
use keypool_testing::tokens::{authorized, token, token_with};

use super::*;

/// What a call is answered with, all of it but the id that names the request in the log.
fn told(status: &tonic::Status) -> (i32, String, Vec<u8>, Vec<String>) {
    let headers = status.metadata().clone().into_headers();
    let mut headers: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort();
    (status.code().into(), status.message().into(), status.details().into(), headers)
}

/// The statements of Reserves that the log has, from some byte on, without what they take.
fn statements(server: &Server, from: usize) -> Vec<String> {
    let log = server.log();
    let lines = log[from..].lines().filter(|line| line.contains("sqlx::query"));
    let summary = |line: &str| Some(line.split_once("summary=")?.1.chars().take(40).collect());
    let of_reserve = |it: &String| it.contains("-- Reserve") || it.contains("c.call");
    lines.filter_map(summary).filter(of_reserve).collect()
}

#[tokio::test]
async fn who_does_not_exist_is_answered_like_who_has_nothing_left() {
    let database = database().await;
    let chatty = options().text("log.filter", "info,sqlx::query=debug");
    let server = Server::start(&database, &chatty).await;
    let alice = server.client("alice", "phone").await;
    // One with a client, one with two; nothing is left of any.
    for (user, client) in [("bob", "phone"), ("dave", "phone"), ("dave", "piano")] {
        publish(&server.client(user, client).await, packages(user, 1)).await;
        let ask = Reserve::new(GROUP, SUITE).target_clients(user, [client]);
        let held = reserve_one(&alice, &ask).await;
        alice.spend(GROUP, [held.reservation_id]).await.unwrap();
    }
    // To have someone who can be served in a call for several.
    publish_some(&server, "carol", 40).await;

    let mut grpc = server.grpc().await;
    let reserve = |user: &str| Reserve::new(GROUP, SUITE).target(user);
    let clients =
        |user: &str, client: &str| Reserve::new(GROUP, SUITE).target_clients(user, [client]);
    let other_suite = |user: &str| Reserve::new(GROUP, 3_u16).target(user);
    let mut asked = 0;
    for (case, exhausted, strangers) in [
        ("a user", reserve("bob"), vec![reserve("nobody")]),
        ("a user with two clients", reserve("dave"), vec![reserve("nobody")]),
        ("of another suite", other_suite("bob"), vec![other_suite("nobody")]),
        (
            "a client",
            clients("bob", "phone"),
            vec![clients("bob", "piano"), clients("nobody", "phone")],
        ),
        (
            "a user, all or nothing",
            reserve("bob").all_or_nothing(),
            vec![reserve("nobody").all_or_nothing()],
        ),
        (
            "two users, all or nothing",
            reserve("bob").target("carol").all_or_nothing(),
            vec![reserve("nobody").target("carol").all_or_nothing()],
        ),
    ] {
        let mut expected = None;
        for request in [vec![exhausted], strangers].concat() {
            asked += 1;
            let adder = token(&format!("adder {asked}"), "phone");
            let from = server.log().len();
            let message = request.message().clone();
            let answer = grpc.reserve_key_packages(authorized(&adder, message)).await;
            let found = (told(&answer.unwrap_err()), statements(&server, from));
            assert!(!found.1.is_empty(), "{case}: statements are logged");
            match &expected {
                None => expected = Some(found),
                Some(expected) => {
                    assert_eq!(found.0, expected.0, "{case}");
                    // Two packages take another statement than one.
                    assert!(found.1 == expected.1 || case.contains("two clients"), "{case}");
                }
            }
        }
    }

    // Beside others, the results say no more: their clients are those that were asked for, if any.
    let adder = token("the last adder", "phone");
    for users in [&["bob", "nobody"][..], &["bob", "dave", "nobody"]] {
        let mut shown = Vec::new();
        for user in users {
            let ask = if users.len() == 2 { clients(user, "phone") } else { reserve(user) };
            let message = ask.target("carol").message().clone();
            let answer = grpc.reserve_key_packages(authorized(&adder, message)).await.unwrap();
            let mut results = answer.into_inner().results;
            let carol = results.pop().unwrap();
            assert!(carol.user_id == "carol" && results.iter().all(|it| it.user_id == *user));
            results.iter_mut().for_each(|it| it.user_id.clear());
            shown.push(results);
        }
        assert!(shown.iter().all(|it| *it == shown[0]), "{shown:#?}");
    }
}

/// Reservations of others, and such as never were, are equally unknown; so are pools of others.
#[tokio::test]
async fn what_belongs_to_others_is_answered_like_what_never_was() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    publish_some(&server, "bob", 2).await;
    let alice = server.client("alice", "phone").await;
    let theirs = reserve_one(&alice, &one_of("bob")).await.reservation_id;
    let flipped = |at: usize| {
        let mut bytes = theirs.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    let mut grpc = server.grpc().await;
    let mallory = token("mallory", "phone");
    let mut spends = Vec::new();
    let mut releases = Vec::new();
    for id in [theirs.clone(), flipped(0), flipped(theirs.len() - 2), "never was".into()] {
        let ids = vec![id.clone()];
        let spend =
            v1::SpendKeyPackagesRequest { reservation_ids: ids.clone(), group_id: GROUP.into() };
        let release = v1::ReleaseReservationsRequest { reservation_ids: ids };
        let spend = grpc.spend_key_packages(authorized(&mallory, spend)).await.unwrap_err();
        let release = grpc.release_reservations(authorized(&mallory, release)).await.unwrap_err();
        // The id that was sent may come back.
        let without_id = |status: tonic::Status| {
            let refused = Rejection::from(status);
            let mut metadata: Vec<(String, String)> = refused.metadata.into_iter().collect();
            metadata.sort();
            format!("{:?} {} {metadata:?}", refused.reason, refused.message).replace(&id, "ID")
        };
        spends.push(without_id(spend));
        releases.push(without_id(release));
    }
    for answers in [spends, releases] {
        assert!(answers.iter().all(|it| *it == answers[0]), "{answers:#?}");
    }

    let publisher = token_with("mallory", "phone", &[Scope::Publish]);
    let mut listed = Vec::new();
    for user in ["bob", "nobody"] {
        let request = v1::ListPoolEventsRequest {
            user_id: user.into(),
            client_id: "phone".into(),
            ..Default::default()
        };
        let answer = grpc.list_pool_events(authorized(&publisher, request)).await;
        listed.push(answer.map(|answer| answer.into_inner()).map_err(|it| told(&it)));
    }
    assert_eq!(listed[0], listed[1]);
}
