//! See `vvu_fuzz::blk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::blk::run(data));
