//! `keypool check`: what is wrong with the configuration and with what it points to.

use crate::{
    config::{Config, Finding},
    grpc::auth::KeySet,
};

/// What is wrong with the files that a valid configuration names. None: it can serve.
pub fn files(config: &Config) -> Vec<Finding> {
    let keys = KeySet::load(&config.auth.keys);
    keys.err().map(|error| Finding::new("auth.keys", format!("{error:#}"))).into_iter().collect()
}
