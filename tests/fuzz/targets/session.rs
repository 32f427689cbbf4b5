//! See `vvu_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::session::run(data));
