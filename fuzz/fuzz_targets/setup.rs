#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| leasehold_fabric::iwarp::fuzz::setup(bytes));
