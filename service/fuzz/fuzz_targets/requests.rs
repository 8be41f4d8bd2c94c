//! Requests that are nearly right, to a whole server with a database.

#![no_main]

use std::cell::RefCell;

use keypool_testing::fuzz::Requests;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SERVER: RefCell<Requests> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    SERVER.with_borrow_mut(|server| {
        server.run(data);
    });
});
