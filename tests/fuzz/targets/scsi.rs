//! See `vvu_fuzz::scsi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vvu_fuzz::scsi::run(data));
