//! An adder that dies at any step: before and after each write of its journal, between which it
//! does one thing that others see. The store is a file, the adder a process, the server real.

use std::{
    env, fs,
    future::ready,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use keypool_client::{
    Bytes, CommitOutcome, InvitationRecord, MetadataError, PackageRecord, SqliteMetadataStore, Uuid,
};
use keypool_testing::tokens::token;

use super::*;

/// How many writes an invitation takes: about to reserve, reserved, about to commit, about to
/// settle, settled.
const WRITES: usize = 5;
const SIGABRT: i32 = 6;

/// Dies at one of its writes.
struct Mortal {
    store: SqliteMetadataStore,
    dies_at: usize,
    dies_after_it: bool,
    writes: AtomicUsize,
}

impl Mortal {
    fn write<T>(&self, write: impl FnOnce() -> T) -> T {
        let last = self.writes.fetch_add(1, Ordering::SeqCst) + 1 == self.dies_at;
        if last && !self.dies_after_it {
            std::process::abort();
        }
        let written = write();
        if last {
            std::process::abort();
        }
        written
    }
}

impl MetadataStore for Mortal {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        self.store.packages()
    }
    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        self.store.put_packages(records)
    }
    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        self.store.remove_packages(refs)
    }
    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        self.store.invitations()
    }
    fn invitation(&self, id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        self.store.invitation(id)
    }
    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.write(|| self.store.put_invitation(record))
    }
    fn remove_invitation(&self, id: Uuid) -> Result<(), MetadataError> {
        self.write(|| self.store.remove_invitation(id))
    }
}

/// Where the Delivery Service notes that it accepted the Commit.
fn accepted(folder: &Path) -> std::path::PathBuf {
    folder.join("accepted")
}

/// Run as a process of its own by the test below: invites Bob, and dies on the way.
#[tokio::test]
#[ignore = "a child of another test"]
async fn adder() {
    let [url, token, folder, dies_at, dies_after_it, fate] =
        ["URL", "TOKEN", "FOLDER", "DIES_AT", "DIES_AFTER_IT", "FATE"]
            .map(|name| env::var(format!("ADDER_{name}")).unwrap());
    let folder = Path::new(&folder);
    let store = Mortal {
        store: SqliteMetadataStore::open(folder.join("metadata")).unwrap(),
        dies_at: dies_at.parse().unwrap(),
        dies_after_it: dies_after_it == "true",
        writes: AtomicUsize::new(0),
    };
    let client = Client::connect(url, token).await.unwrap();
    let invites = invites(client, store);
    let mut alice = Member::new("alice", "phone", SUITE);
    alice.create_group();
    let (group, provider, signer) = alice.group();
    let mut invitation = invite(&invites, &Reserve::for_group(group).target("bob")).await;
    let messages = invitation.add_to(group, provider, signer).unwrap();
    if fate == "accepted" {
        fs::write(accepted(folder), b"").unwrap();
        alice.merge_commit();
        invitation.spend().await.unwrap();
    } else {
        invitation.release().await.unwrap();
    }
    drop(messages);
}

#[tokio::test]
async fn wherever_an_adder_dies_what_it_used_is_spent_and_the_rest_is_back() {
    let (_database, server) = server().await;
    const STOCK: usize = 10;
    let (_, bob) = member_with(&server, "bob", STOCK).await;
    let mut used = 0;
    for fate in ["accepted", "rejected"] {
        for dies_at in 1..=WRITES + 1 {
            for dies_after_it in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let child = tokio::process::Command::new(env::current_exe().unwrap())
                    .args(["--ignored", "--exact", "sdk_invite::crash::adder"])
                    .env("ADDER_URL", server.uri())
                    .env("ADDER_TOKEN", token("alice", "phone"))
                    .env("ADDER_FOLDER", folder.path())
                    .env("ADDER_DIES_AT", dies_at.to_string())
                    .env("ADDER_DIES_AFTER_IT", dies_after_it.to_string())
                    .env("ADDER_FATE", fate)
                    .stdin(Stdio::null())
                    .output()
                    .await
                    .unwrap();
                let place = format!("{fate}, write {dies_at}, after it: {dies_after_it}");
                let ended = (child.status.success(), child.status.signal());
                let lived = dies_at > WRITES;
                let expected = if lived { (true, None) } else { (false, Some(SIGABRT)) };
                assert_eq!(ended, expected, "{place}: {child:?}");

                let store =
                    Arc::new(SqliteMetadataStore::open(folder.path().join("metadata")).unwrap());
                let restarted = invites(server.client("alice", "phone").await, store.clone());
                let (outcome, uses) = if accepted(folder.path()).exists() {
                    (CommitOutcome::Accepted, 1)
                } else {
                    (CommitOutcome::Rejected, 0)
                };
                used += uses;
                let recovery = restarted.recover(|_| ready(outcome)).await.unwrap();
                assert_eq!((recovery.lost.len(), recovery.unknown), (0, 0), "{place}");
                assert_eq!(store.invitations().unwrap(), [], "{place}");
                let expected = (STOCK as u32 - used, 0, used.into());
                assert_eq!(counts(&bob).await, expected, "{place}");
            }
        }
    }
    assert_eq!(used, 6, "each accepted Commit, whenever its adder died after that");
}
