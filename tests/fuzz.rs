//! Whatever is sent, keypool does not panic, does not answer INTERNAL, and holds no more memory than
//! what was sent may cost; and what it accepts, openmls accepts.
//!
//! The inputs are random, but the same in every run. `KEYPOOL_FUZZ_RUNS` multiplies their number
//! and `KEYPOOL_FUZZ_SEED` makes others; `service/fuzz` has libFuzzer choose them.

use std::{collections::BTreeMap, env};

use keypool_client::Code;
use keypool_testing::fuzz::{Requests, Verdict, key_package};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

/// The inputs of a test, as many as CI has time for.
fn inputs(number: usize) -> impl Iterator<Item = Vec<u8>> {
    let from_env = |name: &str| env::var(name).ok().map(|given| given.parse::<u64>().unwrap());
    let times = from_env("KEYPOOL_FUZZ_RUNS").unwrap_or(1);
    let mut random = StdRng::seed_from_u64(from_env("KEYPOOL_FUZZ_SEED").unwrap_or(9420));
    (0..number * usize::try_from(times).unwrap()).map(move |_| {
        let mut input = vec![0; random.random_range(16..600)];
        random.fill_bytes(&mut input);
        input
    })
}

/// Tells the input that a test fails on.
struct OnPanic<'a>(&'a [u8]);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("the input: {hex}");
        }
    }
}

#[test]
fn key_packages_that_are_nearly_right() {
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for input in inputs(2000) {
        let _input = OnPanic(&input);
        *verdicts.entry(format!("{:?}", key_package(&input))).or_default() += 1;
    }
    eprintln!("{verdicts:?}");
    // The inputs get past the first check and reach every rule.
    let accepted = verdicts.get(&format!("{:?}", Verdict::Accepted)).copied().unwrap_or(0);
    assert!(accepted > 100, "{verdicts:?}");
    assert!(verdicts.len() >= 9, "{verdicts:?}");
}

#[test]
fn requests_that_are_nearly_right() {
    let mut target = Requests::new();
    let mut answers: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for input in inputs(800) {
        let _input = OnPanic(&input);
        let answered = target.run(&input);
        *answers.entry((answered.rpc, format!("{:?}", answered.code))).or_default() += 1;
    }
    eprintln!("{answers:?}");
    assert!(target.serves());
    // Every RPC does its work now and then, and those that ask for anything refuse now and then.
    let ok = format!("{:?}", Code::Ok);
    for rpc in answers.keys().map(|(rpc, _)| *rpc) {
        assert!(answers.contains_key(&(rpc, ok.clone())), "{rpc}: {answers:?}");
        let refuses = answers.keys().any(|(of, code)| *of == rpc && *code != ok);
        let asks = !["GetPoolStatus", "WatchPoolStatus"].contains(&rpc);
        assert!(refuses || !asks, "{rpc}: {answers:?}");
    }
    let rpcs: std::collections::BTreeSet<&str> = answers.keys().map(|(rpc, _)| *rpc).collect();
    assert_eq!(rpcs.len(), 8, "{answers:?}");
}

/// Two bytes on the wire are up to 48 once they are decoded, so lists that are far too long are
/// refused before.
#[test]
fn lists_cost_no_more_than_they_are_long() {
    const ITEMS: usize = 1_000_000;
    let mut target = Requests::new();
    let items = |tag: u8| [tag, 0].repeat(ITEMS);
    let one_target = {
        let mut message = vec![0x22];
        let (mut length, clients) = (2 * ITEMS, items(0x12));
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        [message, clients].concat()
    };
    for (rpc, message) in [
        ("UploadKeyPackages", items(0x0a)),
        ("ReserveKeyPackages", items(0x22)),
        ("ReserveKeyPackages", one_target),
        ("SpendKeyPackages", items(0x0a)),
        ("ReleaseReservations", items(0x0a)),
        ("RevokeKeyPackages", items(0x12)),
    ] {
        let answered = target.judge(rpc, 0, message);
        assert_eq!(answered.code, Code::InvalidArgument, "{rpc}");
    }
    assert!(target.serves());
}
