//! The benchmarks of `tower-session-end`.
