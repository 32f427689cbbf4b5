//! See `vvu_fuzz::model`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::model::run(data));
