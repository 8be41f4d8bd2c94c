//! KeyPackages, made as fast as they are used up.

use aws_lc_rs::digest::{SHA256, digest};
use keypool_testing::{
    forge::{Forge, Source, hpke_public_key, vector},
    member::Member,
};
use openmls::prelude::Lifetime;
use openmls_traits::types::HpkeKemType;
use rand::{RngExt as _, rngs::StdRng};

use crate::history::{Micros, Offered, Ref, now};

/// The cipher suite of all of them.
pub const SUITE: u16 = 1;
/// Of so many packages one is made by openmls itself, which takes a debug build a while.
const ONE_BY_OPENMLS: u32 = 40;
const SECOND: Micros = 1_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// A package of a pool.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its TLS encoding.
    pub bytes: Vec<u8>,
    /// What the history says of it.
    pub offered: Offered,
}

/// A client that makes packages.
#[derive(Debug)]
pub struct Maker {
    forge: Forge,
    member: Member,
}

impl Maker {
    /// The maker of a client's packages.
    pub fn new(user: &str, client: &str) -> Self {
        Self { forge: Forge::new(SUITE, user), member: Member::new(user, client, SUITE) }
    }

    /// A package that ends some hours to some weeks from now.
    pub fn make(&mut self, last_resort: bool, rng: &mut StdRng) -> Made {
        let today = u64::try_from(now() / SECOND).expect("a time after 1970");
        let (not_before, not_after) = (today - HOUR, today + rng.random_range(6 * HOUR..60 * DAY));
        let by_openmls = last_resort || rng.random_ratio(1, ONE_BY_OPENMLS);
        let bytes = if by_openmls {
            self.member.key_package(last_resort, Lifetime::init(not_before, not_after))
        } else {
            self.forge.init_key = hpke_public_key(HpkeKemType::DhKem25519);
            self.forge.encryption_key = hpke_public_key(HpkeKemType::DhKem25519);
            self.forge.source = Source::KeyPackage(not_before, not_after);
            self.forge.build()
        };
        let not_after = Micros::try_from(not_after).expect("a time") * SECOND;
        let offered = Offered { reference: reference(&bytes), not_after, last_resort };
        Made { bytes, offered }
    }
}

/// Its KeyPackageRef (RFC 9420, section 5.2).
pub(crate) fn reference(package: &[u8]) -> Ref {
    let hashed = [vector(b"MLS 1.0 KeyPackage Reference"), vector(package)].concat();
    Ref::of(digest(&SHA256, &hashed).as_ref()).expect("32 bytes")
}
