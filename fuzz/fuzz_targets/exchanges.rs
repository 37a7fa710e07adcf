//! See `tower_session_end_fuzz::exchanges`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_session_end_fuzz::exchanges(data));
