//! `keypool check`: what is wrong with the configuration and with what it points to.

use crate::{
    config::{Config, Finding},
    grpc::auth::KeySet,
    run,
};

/// What is wrong with the files that a valid configuration names. None: it can serve.
pub fn files(config: &Config) -> Vec<Finding> {
    let files = Some(&config.auth.keys).filter(|files| !files.is_empty());
    let keys = files.and_then(|files| KeySet::load(files).err());
    let anchors = run::load_trust_anchors(&config.upload.trust_anchors).err();
    let tls = config.tls.as_ref().and_then(|section| run::load_tls(section).err());
    [("auth.keys", keys), ("tls", tls), ("upload.trust_anchors", anchors)]
        .into_iter()
        .filter_map(|(key, error)| Some(Finding::new(key, format!("{:#}", error?))))
        .collect()
}

/// What is wrong with the keys that the issuer of tokens publishes. None: they can be used.
pub async fn published_keys(config: &Config) -> Vec<Finding> {
    let Some(section) = &config.auth.jwks else { return Vec::new() };
    let error = KeySet::fetch(section).await.err();
    error.map(|error| Finding::new("auth.jwks_url", format!("{error:#}"))).into_iter().collect()
}
