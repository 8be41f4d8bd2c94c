//! Real KeyPackages, and how fast openmls itself checks them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use keypool_service::domain::{
    clock::{Clock as _, SystemClock},
    ids::{ClientId, ClientKey, UserId},
    key_package::{UploadPolicy, validate_all},
};
use keypool_testing::member::Member;
use openmls::prelude::{KeyPackageIn, Lifetime, OpenMlsProvider as _, ProtocolVersion};
use openmls_rust_crypto::OpenMlsRustCrypto;
use tls_codec::DeserializeBytes as _;

use crate::machine;

/// The cipher suite that everything is measured with: MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519.
pub(crate) const CIPHER_SUITE: u16 = 1;
const CLIENT: &str = "phone";
/// As long as keypool takes them by default, less what is for the start of the lifetime.
const LIFETIME: Duration = Duration::from_secs(80 * 24 * 60 * 60);

/// A client with packages that nobody has seen yet.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) user_id: String,
    pub(crate) packages: Vec<Bytes>,
}

/// Clients of different users with so many packages each, made on all cores.
pub(crate) fn publishers(
    prefix: &str,
    clients: usize,
    each: usize,
) -> anyhow::Result<Vec<Publisher>> {
    on_all_cores(clients, |client| {
        let user_id = format!("{prefix}{client:06}");
        let member = Member::new(&user_id, CLIENT, CIPHER_SUITE);
        let lifetime = || Lifetime::new(LIFETIME.as_secs());
        let packages = (0..each).map(|_| member.key_package(false, lifetime()).into()).collect();
        Ok(Publisher { user_id, packages })
    })
}

/// How long it takes openmls to parse and validate all packages, on all cores.
pub(crate) fn validate(publishers: &[Publisher]) -> anyhow::Result<Duration> {
    let start = Instant::now();
    on_all_cores(publishers.len(), |client| {
        let provider = OpenMlsRustCrypto::default();
        let publisher = publishers.get(client).context("a publisher")?;
        for package in &publisher.packages {
            let package = KeyPackageIn::tls_deserialize_exact_bytes(package)?;
            package.validate(provider.crypto(), ProtocolVersion::Mls10)?;
        }
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// How long it takes keypool to judge all packages, those of a client at once, on all cores.
pub(crate) fn judge(publishers: &[Publisher]) -> anyhow::Result<Duration> {
    let uploads: Vec<(ClientKey, Vec<Vec<u8>>)> = publishers
        .iter()
        .map(|publisher| {
            let user = UserId::parse(&publisher.user_id)?;
            let packages = publisher.packages.iter().map(|package| package.to_vec()).collect();
            Ok((ClientKey { user, client: ClientId::parse(CLIENT)? }, packages))
        })
        .collect::<anyhow::Result<_>>()?;
    let (policy, now) = (UploadPolicy::default(), SystemClock.now());
    let start = Instant::now();
    on_all_cores(uploads.len(), |upload| {
        let (caller, packages) = uploads.get(upload).context("an upload")?;
        let refused =
            validate_all(packages, caller, &policy, now).into_iter().find_map(Result::err);
        refused.map_or(Ok(()), |rejection| Err(anyhow!("{}", rejection.message)))
    })?;
    Ok(start.elapsed())
}

/// What `job` makes of each number below `count`, in order.
fn on_all_cores<T: Send>(
    count: usize,
    job: impl Fn(usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let threads = machine::cores();
    let job = &job;
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    (thread..count).step_by(threads).map(|n| Ok((n, job(n)?))).collect()
                })
            })
            .collect();
        let parts: Vec<anyhow::Result<Vec<(usize, T)>>> = running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect();
        parts.into_iter().collect::<anyhow::Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    done.sort_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, made)| made).collect())
}
