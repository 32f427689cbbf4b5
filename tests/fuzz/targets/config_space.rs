//! See `vvu_fuzz::config_space`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::config_space::run(data));
