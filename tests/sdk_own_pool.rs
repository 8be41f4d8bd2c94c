//! The SDK's `OwnPool` with keypool itself: for every package that the server may still issue, the
//! device holds the private keys; for every other, it does not.

mod crash;
mod device;
mod join;
mod refresh;
mod run;
mod truth;
mod walk;

use device::Device;
use keypool_client::{Client, Reserve, v1};
use keypool_service::domain::{ids::ClientKey, policy::PoolPolicy};
use keypool_testing::watching::{Replica, Replicas, client_key};

const SUITE: u16 = 1;
const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// One server with a clock that stands still, and an adder that draws as it likes.
struct World {
    replicas: Replicas,
    replica: Replica,
    alice: Client,
}

impl World {
    /// Its pools are small.
    async fn new() -> Self {
        Self::with(PoolPolicy {
            target: 3,
            low_watermark: 1,
            refill_spread: time::Duration::ZERO,
            ..PoolPolicy::default()
        })
        .await
    }

    async fn with(policy: PoolPolicy) -> Self {
        let replicas = Replicas::new(policy).await;
        let replica = replicas.serve().await;
        let alice = replicas.client(&replica, &client_key("alice", "phone")).await;
        Self { replicas, replica, alice }
    }

    fn url(&self) -> String {
        format!("http://{}", self.replica.address)
    }

    /// Seconds since 1970.
    fn now(&self) -> u64 {
        use keypool_service::domain::clock::Clock as _;
        self.replicas.clock.now().unix_timestamp().try_into().unwrap()
    }

    fn pass(&self, seconds: u64) {
        self.replicas.clock.advance(time::Duration::seconds(seconds.try_into().unwrap()));
    }

    async fn client(&self, owner: &ClientKey) -> Client {
        self.replicas.client(&self.replica, owner).await
    }

    /// A new device of a user, with its own folder.
    async fn device(&self, user: &str) -> Device {
        let owner = client_key(user, "phone");
        Device::new(self.client(&owner).await, owner, self.replicas.clock.clone())
    }

    /// Reserves one package of the device.
    async fn reserve(&self, device: &Device) -> v1::Reservation {
        self.try_reserve(device).await.expect("a package to reserve")
    }

    async fn try_reserve(&self, device: &Device) -> Option<v1::Reservation> {
        let ClientKey { user, client } = &device.owner;
        let ask =
            Reserve::new(&b"group"[..], SUITE).target_clients(user.as_str(), [client.as_str()]);
        match self.alice.reserve(&ask).await {
            Ok(answer) => Some(answer.results[0].reservation().expect("a reservation").clone()),
            Err(error) => {
                assert_eq!(error.reason(), Some(v1::ErrorReason::PoolExhausted), "{error:?}");
                None
            }
        }
    }

    async fn spend(&self, reservation: &v1::Reservation) {
        self.alice.spend(&b"group"[..], [&reservation.reservation_id]).await.unwrap();
    }
}
