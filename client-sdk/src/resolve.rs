use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    builder::Name,
    endpoints::{Endpoints, Node},
};

/// Looks the names up after each interval, at first at once, until the client is gone.
pub(crate) async fn follow(endpoints: Weak<Endpoints>, names: Vec<Name>, every: Duration) {
    while let Some(endpoints) = endpoints.upgrade() {
        look_up(&endpoints, &names).await;
        drop(endpoints);
        tokio::time::sleep(every).await;
    }
}

/// Looks the names up. What cannot be looked up stays as it was.
pub(crate) async fn look_up(endpoints: &Endpoints, names: &[Name]) {
    for name in names {
        if let Ok(found) = tokio::net::lookup_host(name.host_and_port()).await {
            update(endpoints, name, found.collect());
        }
    }
}

/// Makes these the addresses of a name. Those that stay keep their connection.
fn update(endpoints: &Endpoints, name: &Name, found: BTreeSet<SocketAddr>) {
    let (known, mut nodes): (Vec<_>, Vec<_>) =
        endpoints.nodes().into_iter().partition(|node| node.name == name.place);
    let before = nodes.len();
    nodes.extend(found.into_iter().filter_map(|address| {
        let kept = known.iter().find(|node| node.address == Some(address)).cloned();
        kept.or_else(|| {
            let endpoint = name.endpoint_at(address).ok()?;
            Some(Arc::new(Node::new(name.place, Some(address), endpoint.connect_lazy())))
        })
    }));
    if nodes.len() == before {
        return; // no address at all: rather those that were good once
    }
    nodes.sort_by_key(|node| (node.name, node.address));
    endpoints.replace(nodes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    fn addresses(endpoints: &Endpoints, name: usize) -> Vec<Option<String>> {
        let nodes = endpoints.nodes().into_iter().filter(|node| node.name == name);
        nodes.map(|node| Some(node.address?.to_string())).collect()
    }

    fn found(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_addresses_of_a_name_come_and_go_and_those_that_stay_keep_their_connection() {
        let builder = Client::builder("http://keypool:1", "token").endpoint("http://other:1");
        let names = builder.names().unwrap();
        let nodes = names.iter().map(|name| Node::new(name.place, None, name.channel()));
        let endpoints = Endpoints::new(nodes.collect());
        assert_eq!(addresses(&endpoints, 0), [None]);

        update(&endpoints, &names[0], found(&["10.0.0.1:1", "10.0.0.2:1"]));
        assert_eq!(
            addresses(&endpoints, 0),
            ["10.0.0.1:1", "10.0.0.2:1"].map(|it| Some(it.into()))
        );
        let kept = endpoints.nodes().into_iter().find(|node| node.address.is_some()).unwrap();
        update(&endpoints, &names[0], found(&["10.0.0.3:1", "10.0.0.1:1"]));
        assert_eq!(
            addresses(&endpoints, 0),
            ["10.0.0.1:1", "10.0.0.3:1"].map(|it| Some(it.into()))
        );
        assert!(endpoints.nodes().iter().any(|node| Arc::ptr_eq(node, &kept)));

        update(&endpoints, &names[0], found(&[]));
        assert_eq!(addresses(&endpoints, 0).len(), 2, "an empty answer changes nothing");
        assert_eq!(addresses(&endpoints, 1), [None], "nor does another name's");
    }

    #[tokio::test]
    async fn names_are_looked_up_again_until_the_client_is_gone() {
        let builder = Client::builder("http://localhost:1", "token");
        let names = builder.names().unwrap();
        let node = || Node::new(0, None, names[0].channel());
        let endpoints = Arc::new(Endpoints::new(vec![node()]));
        let following = tokio::spawn(follow(
            Arc::downgrade(&endpoints),
            names.clone(),
            Duration::from_millis(1),
        ));
        for _ in 0..2 {
            endpoints.replace(vec![Arc::new(node())]);
            while endpoints.nodes().iter().any(|node| node.address.is_none()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        drop(endpoints);
        following.await.unwrap();
    }
}
