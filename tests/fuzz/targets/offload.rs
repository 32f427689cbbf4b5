//! See `vvu_fuzz::offload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::offload::run(data));
