//! The SDK's `Invites` with keypool itself: what is reserved is spent or released.

mod crash;
mod group;
mod settle;

use std::sync::Arc;

use keypool_client::{
    Client, Invitation, Invites, MemoryMetadataStore, MetadataStore, Reserve,
    basic_credential_names_user,
};
use keypool_service::store::MIGRATOR;
use keypool_testing::{
    database::TestDatabase,
    member::{Member, RustCrypto},
    server::{Server, ServerOptions},
};
use openmls::prelude::{Lifetime, OpenMlsProvider as _};

const SUITE: u16 = 1;
const STOCK: usize = 3;

/// A server without fair share, which its own tests are about: here adders draw repeatedly.
async fn server() -> (TestDatabase, Server) {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = start(&database).await;
    (database, server)
}

async fn start(database: &TestDatabase) -> Server {
    Server::start(database, &ServerOptions::default().set("pool.fair_share", false)).await
}

/// A member with a group, and with packages in its pool.
async fn member(server: &Server, user_id: &str) -> (Member, Client) {
    member_with(server, user_id, STOCK).await
}

async fn member_with(server: &Server, user_id: &str, stock: usize) -> (Member, Client) {
    let mut member = Member::new(user_id, "phone", SUITE);
    member.create_group();
    let client = server.client(user_id, "phone").await;
    let packages = (0..stock).map(|_| member.key_package(false, Lifetime::new(86_400)));
    client.upload(packages).await.unwrap();
    (member, client)
}

fn invites(client: Client, store: impl MetadataStore + 'static) -> Invites {
    Invites::new(client, store, basic_credential_names_user)
}

async fn invites_in_memory(server: &Server, user_id: &str) -> (Invites, Arc<MemoryMetadataStore>) {
    let store = Arc::new(MemoryMetadataStore::new());
    (invites(server.client(user_id, "phone").await, store.clone()), store)
}

async fn invite(invites: &Invites, ask: &Reserve) -> Invitation {
    invites.reserve(RustCrypto::default().crypto(), ask).await.unwrap()
}

/// Of its one cipher suite: available, reserved, spent.
async fn counts(owner: &Client) -> (u32, u32, u64) {
    let status = owner.pool_status().await.unwrap();
    let suite = &status.cipher_suites[0];
    (suite.available, suite.reserved, suite.spent)
}
