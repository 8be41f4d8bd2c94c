//! What keypool promises below its calls, asked of the real binary: TLS, connections, deadlines.

mod calls;
mod connections;
mod tls;

use keypool_service::store::MIGRATOR;
use keypool_testing::{database::TestDatabase, server::ServerOptions};

pub(crate) use calls::refused_past_its_deadline;

async fn database() -> TestDatabase {
    TestDatabase::migrated(&MIGRATOR).await
}

fn options() -> ServerOptions {
    ServerOptions::default()
}
