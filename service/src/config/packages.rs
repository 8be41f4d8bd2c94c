//! `[pool]` and `[upload]`: the rules that KeyPackages are held to.

use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::source::{DAY, MINUTE, SECOND, Source, YEAR};
use crate::domain::{
    ids::CipherSuite,
    policy::{LapsePolicy, PoolPolicy},
};

pub(super) fn read_pool(source: &mut Source) -> PoolPolicy {
    let default = PoolPolicy::default();
    let mut duration = |key, default: time::Duration, bounds: RangeInclusive<Duration>| {
        // Fits: the bounds are years at most.
        let seconds = source.duration(key, default.unsigned_abs(), bounds);
        time::Duration::try_from(seconds).unwrap_or(default)
    };
    let min_remaining_lifetime =
        duration("pool.min_remaining_lifetime", default.min_remaining_lifetime, SECOND..=YEAR);
    let default_ttl = duration("pool.default_ttl", default.default_ttl, SECOND..=DAY);
    let max_ttl = duration("pool.max_ttl", default.max_ttl, SECOND..=DAY);
    let refill_spread = duration("pool.refill_spread", default.refill_spread, Duration::ZERO..=DAY);
    PoolPolicy {
        low_watermark: source.number("pool.low_watermark", default.low_watermark, 0..=1000),
        target: source.number("pool.target", default.target, 1..=1000),
        hard_cap: source.number("pool.hard_cap", default.hard_cap, 1..=1000),
        min_remaining_lifetime,
        default_ttl,
        max_ttl,
        lapse: source
            .read("pool.lapse", |given| match given.text().as_deref() {
                Ok("return") => Ok(LapsePolicy::Return),
                Ok("burn") => Ok(LapsePolicy::Burn),
                _ => Err("must be \"return\" or \"burn\"".into()),
            })
            .unwrap_or(default.lapse),
        refill_spread,
        fair_share: source
            .read("pool.fair_share", |given| given.boolean())
            .unwrap_or(default.fair_share),
        max_open_reservations_per_pool: source.number(
            "pool.max_open_reservations_per_pool",
            default.max_open_reservations_per_pool,
            1..=1000,
        ),
    }
}

/// `[upload]`: which KeyPackages are accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct UploadSection {
    /// `cipher_suites`: the numbers of those accepted (RFC 9420, section 17.1). Default 1, 2, 3.
    pub cipher_suites: BTreeSet<CipherSuite>,
    /// `max_lifetime`: a longer `not_after - not_before` is refused (RFC 9420, section 7.2).
    /// Default 90d.
    pub max_lifetime: Duration,
    /// `clock_skew`: how far in the future a `not_before` may lie. Default 5m.
    pub clock_skew: Duration,
    /// `credential_identity`: what a credential must name, made of `{user_id}`, `{client_id}`
    /// and plain text: the identity of a BasicCredential, or a subject alternative name (URI, DNS
    /// name or e-mail address) of an X.509 credential. Default `{user_id}`.
    pub credential_identity: String,
    /// `trust_anchors`: PEM files with the certificates of the CAs whose X.509 credentials are
    /// accepted. None by default: then no X.509 credential is.
    pub trust_anchors: Vec<PathBuf>,
}

impl Default for UploadSection {
    fn default() -> Self {
        Self {
            cipher_suites: [1, 2, 3].map(CipherSuite).into(),
            max_lifetime: 90 * DAY,
            clock_skew: 5 * MINUTE,
            credential_identity: "{user_id}".into(),
            trust_anchors: Vec::new(),
        }
    }
}

impl UploadSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            cipher_suites: source
                .read("upload.cipher_suites", |given| {
                    let suites = given.list()?.into_iter().map(|suite| {
                        let number = u16::try_from(suite.integer()?).ok().filter(|n| *n != 0);
                        number.map(CipherSuite).ok_or_else(|| "must hold 1 to 65535".into())
                    });
                    let suites = suites.collect::<Result<BTreeSet<CipherSuite>, String>>()?;
                    if suites.is_empty() { Err("must not be empty".into()) } else { Ok(suites) }
                })
                .unwrap_or(default.cipher_suites),
            max_lifetime: source.duration(
                "upload.max_lifetime",
                default.max_lifetime,
                MINUTE..=10 * YEAR,
            ),
            clock_skew: source.duration(
                "upload.clock_skew",
                default.clock_skew,
                Duration::ZERO..=DAY,
            ),
            credential_identity: source
                .read("upload.credential_identity", |given| identity_template(given.text()?))
                .unwrap_or(default.credential_identity),
            trust_anchors: source
                .read("upload.trust_anchors", |given| {
                    given.list()?.into_iter().map(|path| path.text().map(PathBuf::from)).collect()
                })
                .unwrap_or(default.trust_anchors),
        }
    }
}

fn identity_template(template: String) -> Result<String, String> {
    let rest = template.replace("{user_id}", "").replace("{client_id}", "");
    if rest.contains(['{', '}']) {
        return Err("may hold {user_id}, {client_id} and plain text only".into());
    }
    if !template.contains("{user_id}") {
        return Err("must contain {user_id}: else any user could name another".into());
    }
    Ok(template)
}
