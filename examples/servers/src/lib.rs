//! The layer on servers beyond a TCP listener of `axum::serve`, for `main.rs` and the tests.
//!
//! The pages of the guide show these modules, and a test compares them.

pub mod hyper;
pub mod systemd;
pub mod tls;
pub mod unix;
pub mod worker;

/// The code of the guide about layers is tested here, because it needs tower-http.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/layers.md")]
mod guide {}
