//! Killed at each step: just before and just after anything that outlives a process is written.

use keypool_testing::server::signal;

use super::*;

/// A run that invites has more steps than this.
const FEWEST_STEPS: usize = 20;

/// What is said in the group that `user` made, `other` hears, whatever became of the run in which
/// it was made. Whoever is not in it yet is invited again.
async fn is_made_up_for(scene: &Scene, alice: &mut Person, bob: &mut Person, name: &str) {
    let Some((group, members)) = alice.group(name).await else { return };
    let accepted = scene.invited().get(&group).is_some_and(|added| !added.is_empty());
    assert_eq!(members.contains(&"bob".to_owned()), accepted, "{group}: {members:?}");
    alice.types(&[&format!("/in {group}")]).await;
    if !accepted {
        // What the earlier run holds is given back first.
        alice.types_until("/invite bob", &[&group, "alice added bob"]).await;
    }
    let text = format!("do you hear me in {name}?");
    alice.types(&[&text]).await;
    bob.shows(&[&group, "alice: ", &text]).await;
    scene.all_is_settled(&["alice"]).await;
}

#[tokio::test]
async fn an_adder_that_is_killed_at_any_step_has_invited_or_not() {
    let scene = Scene::new().await;
    let mut bob = scene.person("bob").await;
    scene.person("alice").await.kill().await;
    for step in 1.. {
        let name = format!("g{step}");
        let mut alice = Person::start(&scene, "alice", Some(format!("KILL:{step}"))).await;
        alice.types(&[&format!("/new {name}"), "/invite bob", "hello", "/quit"]).await;
        let killed = alice.was_killed().await;
        let mut alice = Person::start(&scene, "alice", None).await;
        is_made_up_for(&scene, &mut alice, &mut bob, &name).await;
        assert!(!bob.shown().iter().any(|line| line.contains("is lost")), "{:?}", bob.shown());
        alice.kill().await;
        if !killed {
            assert!(step > FEWEST_STEPS, "only {step} steps");
            return;
        }
    }
}

#[tokio::test]
async fn an_invitee_that_is_killed_at_any_step_is_in_when_it_is_back() {
    let scene = Scene::new().await;
    let mut alice = scene.person("alice").await;
    scene.person("bob").await.kill().await;
    for step in 1.. {
        let name = format!("g{step}");
        alice.types(&[&format!("/new {name}"), "/invite bob", "hello"]).await;
        let hello = alice.shows(&[&format!("[{name}-"), "alice: hello"]).await;
        let mut bob = Person::start(&scene, "bob", Some(format!("KILL:{step}"))).await;
        let killed = !bob.lives().await;
        let mut bob = Person::start(&scene, "bob", None).await;
        let (group, members) = bob.group(&name).await.expect("bob is in the group");
        assert_eq!(members, ["alice", "bob"]);
        bob.types(&[&format!("/in {group}"), "/history"]).await;
        let (_, said) = hello.split_once("] ").unwrap();
        bob.shows(&[&format!("  {said}")]).await;
        bob.types(&[&format!("I am in {name}")]).await;
        alice.shows(&[&group, &format!("bob: I am in {name}")]).await;
        scene.all_is_settled(&["alice"]).await;
        bob.kill().await;
        if !killed {
            assert!(step > FEWEST_STEPS / 2, "only {step} steps");
            return;
        }
    }
}

#[tokio::test]
async fn a_server_that_is_killed_at_any_step_of_its_adder_is_called_again() {
    let mut scene = Scene::new().await;
    let mut bob = scene.person("bob").await;
    scene.person("alice").await.kill().await;
    for step in 1.. {
        let name = format!("g{step}");
        let mut alice = Person::start(&scene, "alice", Some(format!("STOP:{step}"))).await;
        alice.types(&[&format!("/new {name}"), "/invite bob", "/quit"]).await;
        until(async || alice.has_stopped().is_some()).await;
        let stopped = alice.has_stopped() == Some(true);
        if stopped {
            scene.kill_server().await;
            signal(alice.pid(), "CONT");
        }
        assert!(!alice.was_killed().await);
        let mut alice = Person::start(&scene, "alice", None).await;
        is_made_up_for(&scene, &mut alice, &mut bob, &name).await;
        alice.kill().await;
        if !stopped {
            assert!(step > FEWEST_STEPS, "only {step} steps");
            return;
        }
    }
}
