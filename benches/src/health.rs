//! Health checks: whether the server can be asked how it is; and, as they ask nothing of keypool or
//! Postgres, what any call costs.

use anyhow::ensure;
use bytes::Bytes;
use http::{HeaderValue, Uri};

use crate::{
    connection::{Connection, frame},
    load::Work,
};

const SERVICE: &str = "keypool.v1.KeyPackageService";

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheck {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A connection that asks again and again.
pub(crate) struct Checker {
    connection: Connection,
    uri: Uri,
    /// A call of the service has one; it is not looked at here.
    token: HeaderValue,
    check: Bytes,
}

impl Checker {
    pub(crate) fn new(connection: Connection, token: HeaderValue) -> anyhow::Result<Self> {
        let uri = connection.uri("/grpc.health.v1.Health/Check")?;
        let check = frame(&HealthCheck { service: SERVICE.into() })?;
        Ok(Self { connection, uri, token, check })
    }

    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let health: Health =
            self.connection.send(&self.uri, &self.token, self.check.clone()).await?;
        ensure!(health.status == 1, "health: {health:?}");
        Ok(())
    }
}

impl Work for Checker {
    async fn operate(&mut self) -> anyhow::Result<u64> {
        self.check().await?;
        Ok(1)
    }
}
