//! KeyPackages that are nearly right.

#![no_main]

use keypool_testing::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzz::key_package(data);
});
