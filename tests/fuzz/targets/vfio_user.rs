//! See `vvu_fuzz::vfio_user`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::vfio_user::run(data));
