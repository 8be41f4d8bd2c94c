//! Killed whenever it happens: people and the server, over many rounds, while all talk at once.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const ROUNDS: usize = 24;
const PEOPLE: [&str; 3] = ["alice", "bob", "carol"];

#[tokio::test]
async fn whoever_is_killed_whenever_it_happens_all_who_were_invited_are_in() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new().await;
    let mut people = Vec::new();
    for user in PEOPLE {
        people.push(scene.person(user).await);
    }
    for round in 0..ROUNDS {
        let adder = random.random_range(0..people.len());
        let group = if round % 3 > 0 { format!("/new g{round}") } else { String::new() };
        let invite = format!("/invite {}", PEOPLE[random.random_range(0..PEOPLE.len())]);
        people[adder].types(&[&group, &invite, &format!("said in round {round}")]).await;
        // How long it takes to get anywhere is the machine's to say; so is where this hits.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
        match random.random_range(0..=PEOPLE.len() + 1) {
            victim if victim < people.len() => {
                people.remove(victim).kill().await;
                people.insert(victim, Person::start(&scene, PEOPLE[victim], None).await);
            }
            // It starts and dies on the way, and starts again.
            victim if victim == people.len() => {
                let fault = format!("KILL:{}", random.random_range(1..40));
                people.remove(adder).kill().await;
                let mut again = Person::start(&scene, PEOPLE[adder], Some(fault)).await;
                again.types(&[&invite, "again", "/quit"]).await;
                again.was_killed().await;
                people.insert(adder, Person::start(&scene, PEOPLE[adder], None).await);
            }
            _ => scene.kill_server().await,
        }
    }
    for person in people {
        person.kill().await;
    }
    // All are well now.
    let mut people = Vec::new();
    for user in PEOPLE {
        people.push(scene.person(user).await);
    }
    scene.all_is_settled(&PEOPLE).await;
    let mut invitations = 0;
    for (group, added) in scene.invited() {
        invitations += added.len();
        for speaker in 0..people.len() {
            let Some((_, members)) = people[speaker].group(&group_name(&group)).await else {
                assert!(!added.contains(&PEOPLE[speaker].to_owned()), "{group}: {added:?}");
                continue;
            };
            let text = format!("{} at the end", PEOPLE[speaker]);
            people[speaker].types(&[&format!("/in {group}"), &text]).await;
            for listener in 0..people.len() {
                let is_member = members.contains(&PEOPLE[listener].to_owned());
                let invited = added.contains(&PEOPLE[listener].to_owned());
                assert!(is_member || !invited, "{group}: {added:?}, {members:?}");
                if is_member {
                    people[listener].shows(&[&format!("[{group}]"), &text]).await;
                }
            }
        }
    }
    assert!(invitations > 0, "nobody was invited");
    for person in &mut people {
        let lost = person.shown().into_iter().find(|line| line.contains("is lost"));
        assert_eq!(lost, None);
    }
}

/// The name without the part that makes it unique.
fn group_name(group: &str) -> String {
    group.rsplit_once('-').unwrap().0.to_owned()
}
