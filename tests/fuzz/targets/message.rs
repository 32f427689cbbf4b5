//! See `vvu_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::message::run(data));
