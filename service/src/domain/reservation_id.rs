//! What names a reservation: enough to find its row by primary key, and a tag that only this
//! service can make and that holds for one caller.
//!
//! So no index on reservation ids burdens the tables, and an id that was never issued, or was
//! issued to somebody else, is told from one whose reservation is gone.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::ids::{Bucket, CipherSuite, ClientDigest};

const VERSION: u8 = 1;
const BODY: usize = 1 + 2 + 8 + 2 + 8 + 4;
const TAG: usize = 16;

/// The primary key of a pool's row for one cipher suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SuiteKey {
    /// The bucket of the pool's user.
    pub bucket: Bucket,
    /// The number of the pool within its bucket.
    pub pool_id: i64,
    /// The cipher suite.
    pub cipher_suite: CipherSuite,
}

/// Which reservation of which package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locator {
    /// The pool and cipher suite of the package.
    pub suite: SuiteKey,
    /// The number of the package within them or, for a last resort package, of the grant.
    pub seq: i64,
    /// Counts the reservations of one package, from 1; 0 for a last resort grant.
    pub generation: i32,
}

impl Locator {
    /// Whether it is the grant of a last resort package.
    pub fn is_last_resort(&self) -> bool {
        self.generation == 0
    }

    /// Twenty-five bytes, the version of this encoding first.
    pub fn encode(&self) -> [u8; BODY] {
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..3].copy_from_slice(&self.suite.bucket.get().to_be_bytes());
        body[3..11].copy_from_slice(&self.suite.pool_id.to_be_bytes());
        body[11..13].copy_from_slice(&self.suite.cipher_suite.0.to_be_bytes());
        body[13..21].copy_from_slice(&self.seq.to_be_bytes());
        body[21..25].copy_from_slice(&self.generation.to_be_bytes());
        body
    }

    /// What [`Locator::encode`] gave; `None` for anything else.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (version, rest) = body.split_first()?;
        let (bucket, rest) = rest.split_first_chunk()?;
        let (pool_id, rest) = rest.split_first_chunk()?;
        let (cipher_suite, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        (*version == VERSION && rest.is_empty()).then_some(())?;
        Some(Self {
            suite: SuiteKey {
                bucket: Bucket::from_number(u16::from_be_bytes(*bucket))?,
                pool_id: i64::from_be_bytes(*pool_id),
                cipher_suite: CipherSuite(u16::from_be_bytes(*cipher_suite)),
            },
            seq: i64::from_be_bytes(*seq),
            generation: i32::from_be_bytes(*generation),
        })
    }
}

/// The secret that all replicas share and that makes reservation ids unguessable.
#[derive(Debug)]
pub struct ReservationKey(hmac::Key);

impl ReservationKey {
    /// A key from its 32 bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The id under which `holder` knows the reservation: 55 characters of base64url.
    pub fn seal(&self, locator: &Locator, holder: ClientDigest) -> String {
        let body = locator.encode();
        URL_SAFE_NO_PAD.encode([&body[..], &self.tag(&body, holder)].concat())
    }

    /// The reservation that `id` names, if this service issued it to `holder`.
    pub fn open(&self, id: &str, holder: ClientDigest) -> Option<Locator> {
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        verify_slices_are_equal(tag, &self.tag(body, holder)).ok()?;
        Locator::decode(body)
    }

    fn tag(&self, body: &[u8], holder: ClientDigest) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(body);
        context.update(&holder.0);
        let mut tag = [0; TAG];
        tag.copy_from_slice(&context.sign().as_ref()[..TAG]);
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::UserId;

    fn locator() -> Locator {
        let bucket = Bucket::of(&UserId::parse("bob").unwrap());
        let suite = SuiteKey { bucket, pool_id: -7, cipher_suite: CipherSuite(0xf00d) };
        Locator { suite, seq: i64::MAX, generation: 3 }
    }

    #[test]
    fn opens_only_for_its_holder() {
        let key = ReservationKey::new(&[7; 32]);
        let id = key.seal(&locator(), ClientDigest([1; 16]));
        assert_eq!(id.len(), 55);
        assert_eq!(key.open(&id, ClientDigest([1; 16])), Some(locator()));
        assert_eq!(key.open(&id, ClientDigest([2; 16])), None);
        assert_eq!(ReservationKey::new(&[8; 32]).open(&id, ClientDigest([1; 16])), None);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let key = ReservationKey::new(&[7; 32]);
        let holder = ClientDigest([1; 16]);
        let bytes = URL_SAFE_NO_PAD.decode(key.seal(&locator(), holder)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(&URL_SAFE_NO_PAD.encode(forged), holder), None, "bit {bit}");
        }
        for text in ["", "AA", "not base64!", &"A".repeat(10_000)] {
            assert_eq!(key.open(text, holder), None);
        }
    }
}
