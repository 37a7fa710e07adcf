//! See `tower_session_end_fuzz::mcp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_session_end_fuzz::mcp(data));
