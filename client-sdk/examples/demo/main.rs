//! Alice invites Bob: KeyPackages published, reserved, spent, and a member who joins with one.
//!
//! Every sentence it prints is checked first; it fails on the first promise that is not kept.
//! `script/demo` runs it against a fresh server. By hand it wants `KEYPOOL_URL`, and in
//! `KEYPOOL_TOKEN_ALICE`, `_BOB`, `_CAROL`, `_DAVE` and `_MALLORY` a token for that user (in
//! lower case) and the client `phone`, on a server whose pools for these users are empty.
#![allow(clippy::print_stdout, reason = "a demo talks to its reader")]

mod member;
mod narrator;

use std::env;

use anyhow::{Context as _, Result, ensure};
use keypool_client::{
    Client, Reserve,
    v1::{ErrorReason, Health, Reservation},
};
use narrator::{headline, refused, show_pool, tell};

use crate::member::{Member, SUITE};

/// A user with one device: its MLS half and its access to keypool.
struct User {
    name: &'static str,
    mls: Member,
    keypool: Client,
}

const DEVICE: &str = "phone";

impl User {
    async fn sign_in(name: &'static str) -> Result<Self> {
        let variable = format!("KEYPOOL_TOKEN_{}", name.to_uppercase());
        let token = env::var(&variable).with_context(|| format!("{variable} is not set"))?;
        let url = env::var("KEYPOOL_URL").context("KEYPOOL_URL is not set")?;
        let keypool = Client::connect(url, token).await?;
        Ok(Self { name, mls: Member::new(name)?, keypool })
    }

    async fn publish(&self, one_time: usize, last_resort: bool) -> Result<()> {
        let mut packages = self.mls.one_time_packages(one_time)?;
        if last_resort {
            packages.push(self.mls.last_resort_package()?);
        }
        for result in self.keypool.upload(packages).await?.results {
            if let Some(rejected) = result.rejected() {
                anyhow::bail!("a package of {} was refused: {}", self.name, rejected.message);
            }
            ensure!(result.accepted().is_some(), "a package has no outcome");
        }
        Ok(())
    }

    /// Reserves one package of another user's device, checked as an adder should.
    async fn reserve(&self, request: &Reserve, owner: &User) -> Result<Reservation> {
        let answer = self.keypool.reserve(request).await?;
        let reservation = answer.reservations().next().context("no reservation was made")?;
        self.mls.verify(reservation, owner.name)?;
        Ok(reservation.clone())
    }
}

/// Asks for one package of a user's device.
fn one_package_of(user: &str, group_id: impl Into<keypool_client::Bytes>) -> Reserve {
    Reserve::new(group_id, SUITE).target_clients(user, [DEVICE])
}

#[tokio::main]
async fn main() -> Result<()> {
    let alice = User::sign_in("alice").await?;
    let bob = User::sign_in("bob").await?;
    let carol = User::sign_in("carol").await?;
    let dave = User::sign_in("dave").await?;
    let mallory = User::sign_in("mallory").await?;
    for owner in [&bob, &carol, &dave] {
        let pool = owner.keypool.pool_status().await?;
        ensure!(
            pool.cipher_suites.is_empty(),
            "{}'s pool is not empty: use a fresh server",
            owner.name
        );
    }

    invite(&alice, &bob, &mallory).await?;
    change_of_mind(&alice, &bob).await?;
    exhaust(&carol, [&alice, &bob, &mallory]).await?;
    fall_back(&dave, [&alice, &bob, &mallory]).await?;

    headline("Done: every promise was kept.");
    Ok(())
}

/// The main job, and what guards it.
async fn invite(alice: &User, bob: &User, mallory: &User) -> Result<()> {
    headline("Bob publishes a pool of KeyPackages, so that he can be invited while offline");
    bob.publish(32, true).await?;
    tell("Bob's phone made 32 one-time packages and a last resort one; keypool took all of them.");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!((pool.available, pool.reserved, pool.spent) == (32, 0, 0), "32 should be available");
    ensure!(
        pool.last_resort.is_some_and(|it| it.times_issued == 0),
        "a last resort should be kept"
    );

    headline("Alice reserves one of them for a new group");
    let mut group = alice.mls.create_group()?;
    let group_id = group.group_id().to_vec();
    let request = one_package_of(bob.name, group_id.clone());
    let reservation = alice.reserve(&request, bob).await?;
    ensure!(!reservation.last_resort, "a one-time package should come first");
    tell("She checked it herself: Bob's credential, both signatures, suite, lifetime, ref.");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!((pool.available, pool.reserved) == (31, 1), "one should be reserved");

    headline("The answer gets lost, and Alice asks again with the same request_id");
    let again = alice.reserve(&request, bob).await?;
    ensure!(again == reservation, "a repeated request should give the same reservation");
    tell("She got the very same reservation: a retry burns nothing.");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!((pool.available, pool.reserved) == (31, 1), "a retry should reserve nothing more");

    headline("Mallory got hold of the reservation's id and tries to spend it");
    let ids = [&reservation.reservation_id];
    let theft = mallory.keypool.spend(group_id.clone(), ids).await;
    refused(theft, ErrorReason::ReservationUnknown)?;
    tell("To anyone but its holder a reservation does not exist.");

    headline("Alice commits: Bob is added to the group, and the reservation is spent");
    let welcome = alice.mls.add(&mut group, alice.mls.verify(&reservation, bob.name)?)?;
    let settled = alice.keypool.spend(group_id.clone(), ids).await?;
    ensure!(settled.iter().all(|it| !it.already_spent), "this should be the first Spend");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!((pool.available, pool.reserved, pool.spent) == (31, 0, 1), "one should be spent");

    headline("Bob comes online, joins by the Welcome and reads");
    let message = alice.mls.encrypt(&mut group, "Hi Bob, good to have you here!")?;
    let mut joined = bob.mls.join(&welcome)?;
    ensure!(joined.members().count() == 2, "the group should have two members");
    let text = bob.mls.decrypt(&mut joined, &message)?;
    ensure!(text == "Hi Bob, good to have you here!", "Bob read something else: {text}");
    tell(&format!("Bob decrypted Alice's message: \"{text}\""));

    headline("The package was for one use: a second Spend changes nothing");
    refused(mallory.keypool.spend(group_id.clone(), ids).await, ErrorReason::ReservationUnknown)?;
    let settled = alice.keypool.spend(group_id, ids).await?;
    ensure!(settled.iter().all(|it| it.already_spent), "the package should be spent already");
    tell("Alice, who may simply not have heard the answer, is told that it is spent already.");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!((pool.available, pool.reserved, pool.spent) == (31, 0, 1), "nothing should change");
    Ok(())
}

/// A reservation that is not used goes back.
async fn change_of_mind(alice: &User, bob: &User) -> Result<()> {
    headline("Alice reserves for another group, and changes her mind");
    let request = one_package_of(bob.name, &b"another group"[..]);
    let reservation = alice.reserve(&request, bob).await?;
    let ids = [&reservation.reservation_id];
    alice.keypool.release(ids).await?;
    tell("She released the reservation; its package is back in the pool.");
    let pool = show_pool(bob.name, &bob.keypool).await?;
    ensure!(
        (pool.available, pool.reserved, pool.spent) == (31, 0, 1),
        "the package should be back"
    );
    let late = alice.keypool.spend(&b"another group"[..], ids).await;
    refused(late, ErrorReason::ReservationNotHeld)?;
    tell("What was released can no longer be spent, as someone else may get it next.");
    Ok(())
}

/// A pool without a last resort package runs dry.
async fn exhaust(carol: &User, [alice, bob, mallory]: [&User; 3]) -> Result<()> {
    headline("Carol has published only 2 packages and no last resort one");
    carol.publish(2, false).await?;
    let first = alice.reserve(&one_package_of(carol.name, &b"a"[..]), carol).await?;
    let second = bob.reserve(&one_package_of(carol.name, &b"b"[..]), carol).await?;
    ensure!(first.key_package_ref != second.key_package_ref, "a package was handed out twice");
    tell("Alice and Bob reserved one each, and not the same one. Then Mallory asks:");
    let third = mallory.keypool.reserve(&one_package_of(carol.name, &b"m"[..])).await;
    refused(third, ErrorReason::PoolExhausted)?;
    let pool = show_pool(carol.name, &carol.keypool).await?;
    ensure!((pool.available, pool.reserved) == (0, 2), "both should be reserved");
    ensure!(pool.health == Health::Exhausted, "the pool should be exhausted");
    ensure!(pool.recommended_upload > 0, "Carol should be told to upload");
    tell("And about a user who does not exist:");
    let nobody = mallory.keypool.reserve(&one_package_of("nobody", &b"m"[..])).await;
    refused(nobody, ErrorReason::PoolExhausted)?;
    tell("The same answer: keypool does not tell who is registered.");
    Ok(())
}

/// A pool with a last resort package does not.
async fn fall_back(dave: &User, [alice, bob, mallory]: [&User; 3]) -> Result<()> {
    headline("Dave has one package left, and a last resort one");
    dave.publish(1, true).await?;
    let first = alice.reserve(&one_package_of(dave.name, &b"a"[..]), dave).await?;
    ensure!(!first.last_resort, "the one-time package should come first");
    let second = bob.reserve(&one_package_of(dave.name, &b"b"[..]), dave).await?;
    let third = mallory.reserve(&one_package_of(dave.name, &b"m"[..]), dave).await?;
    ensure!(second.last_resort && third.last_resort, "the last resort should be handed out");
    ensure!(second.key_package_ref == third.key_package_ref, "there is one last resort package");
    tell("Alice got the one-time package; Bob and Mallory both got the last resort one, marked");
    tell("as such. Whoever insists on a package of their own is told that there is none:");
    let strict = one_package_of(dave.name, &b"m"[..]).forbid_last_resort();
    refused(mallory.keypool.reserve(&strict).await, ErrorReason::PoolExhausted)?;
    let pool = show_pool(dave.name, &dave.keypool).await?;
    ensure!((pool.available, pool.reserved) == (0, 1), "the one-time package should be reserved");
    ensure!(pool.last_resort.is_some_and(|it| it.times_issued == 2), "it was handed out twice");
    tell("Dave's phone sees that, uploads new packages and replaces the last resort one.");
    Ok(())
}
