//! `keypool check`: what is wrong with the configuration and with what it points to.

use crate::{
    config::{Config, Finding},
    grpc::auth::KeySet,
    run,
};

/// What is wrong with the files that a valid configuration names. None: it can serve.
pub fn files(config: &Config) -> Vec<Finding> {
    let keys = KeySet::load(&config.auth.keys).err();
    let anchors = run::load_trust_anchors(&config.upload.trust_anchors).err();
    let tls = config.tls.as_ref().and_then(|section| run::load_tls(section).err());
    [("auth.keys", keys), ("tls", tls), ("upload.trust_anchors", anchors)]
        .into_iter()
        .filter_map(|(key, error)| Some(Finding::new(key, format!("{:#}", error?))))
        .collect()
}
