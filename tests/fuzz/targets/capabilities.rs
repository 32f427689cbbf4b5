//! See `vvu_fuzz::capabilities`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::capabilities::run(data));
