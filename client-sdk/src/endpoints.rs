use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keypool_proto::v1::key_package_service_client::KeyPackageServiceClient;
use tokio::time::Instant;
use tonic::transport::Channel;

pub(crate) type Grpc = KeyPackageServiceClient<Channel>;

/// A Reserve may answer with 1,000 packages of 20 KiB.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

const FIRST_OUTAGE: Duration = Duration::from_secs(1);
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);

/// Where the service is, and which replicas answer: calls go round those that do.
#[derive(Debug)]
pub(crate) struct Endpoints {
    nodes: RwLock<Vec<Arc<Node>>>,
    turn: AtomicUsize,
}

/// One address, with a connection of its own that is made when it is needed.
#[derive(Debug)]
pub(crate) struct Node {
    /// The name in the list that the client was built with, by its place there.
    pub(crate) name: usize,
    /// The address that the name resolved to; `None`: the connection resolves it.
    pub(crate) address: Option<SocketAddr>,
    grpc: Grpc,
    outage: Mutex<Outage>,
}

#[derive(Debug, Default)]
struct Outage {
    failures: u32,
    until: Option<Instant>,
}

impl Endpoints {
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        let nodes = RwLock::new(nodes.into_iter().map(Arc::new).collect());
        Self { nodes, turn: AtomicUsize::new(0) }
    }

    /// The order in which to try them: each call begins with another one, and those that failed
    /// lately come last.
    pub(crate) fn route(&self, now: Instant) -> impl Iterator<Item = Arc<Node>> + use<> {
        let mut nodes = self.nodes();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(nodes.len()).unwrap_or_default();
        nodes.rotate_left(first);
        nodes.sort_by_key(|node| node.out_until(now));
        nodes.into_iter()
    }

    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn replace(&self, nodes: Vec<Arc<Node>>) {
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

impl Node {
    pub(crate) fn new(name: usize, address: Option<SocketAddr>, channel: Channel) -> Self {
        let grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Self { name, address, grpc, outage: Mutex::default() }
    }

    pub(crate) fn grpc(&self) -> Grpc {
        self.grpc.clone()
    }

    /// It answered.
    pub(crate) fn answered(&self) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = Outage::default();
    }

    /// It did not: others are asked first for a while, longer each time.
    pub(crate) fn failed(&self, now: Instant) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let length = FIRST_OUTAGE.saturating_mul(2_u32.saturating_pow(outage.failures));
        outage.until = Some(now + length.min(LONGEST_OUTAGE));
        outage.failures = outage.failures.saturating_add(1);
    }

    /// When it is to be asked in its turn again; `None`: now.
    pub(crate) fn out_until(&self, now: Instant) -> Option<Instant> {
        let outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        outage.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn three() -> Endpoints {
        let channel = || Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Endpoints::new((0..3).map(|name| Node::new(name, None, channel())).collect())
    }

    fn names(endpoints: &Endpoints, now: Instant) -> Vec<usize> {
        endpoints.route(now).map(|node| node.name).collect()
    }

    #[tokio::test]
    async fn calls_go_round() {
        let (endpoints, now) = (three(), Instant::now());
        let routes: Vec<_> = (0..4).map(|_| names(&endpoints, now)).collect();
        assert_eq!(routes, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }

    #[tokio::test]
    async fn a_failed_one_comes_last_until_it_may_be_back_and_longer_each_time() {
        let (endpoints, mut now) = (three(), Instant::now());
        let node = endpoints.nodes()[1].clone();
        for outage in [1, 2, 4, 8, 16, 30, 30] {
            node.failed(now);
            for _ in 0..3 {
                assert_eq!(names(&endpoints, now)[2], 1);
            }
            now += Duration::from_secs(outage);
            assert!(node.out_until(now - Duration::from_millis(1)).is_some());
            assert_eq!(node.out_until(now), None);
        }
        node.answered();
        node.failed(now);
        assert_eq!(node.out_until(now + Duration::from_secs(1)), None, "an answer makes it new");
    }
}
