//! Targets for cargo-fuzz: each takes bytes from outside, and panics where something does not hold.
//!
//! ```text
//! cargo +nightly fuzz run header -- -max_total_time=600
//! cargo run --release --no-default-features --example stable -- header 600     # the same target, without nightly
//! ```
//!
//! A protocol of its own gets a target like [`cookie`]: heads out of bytes, one exchange through the layer, and what has
//! to hold of the sessions before and after it.

mod answers;
mod cookie;
mod exchanges;
mod header;
mod heads;
mod input;
mod mcp;
mod words;

pub use self::{answers::answers, cookie::cookie, exchanges::exchanges, header::header, mcp::mcp, words::words};

/// A target.
pub type Target = fn(&[u8]);

/// Every target by its name, for the harness on stable.
pub const TARGETS: &[(&str, Target)] = &[
    ("header", header),
    ("cookie", cookie),
    ("mcp", mcp),
    ("words", words),
    ("exchanges", exchanges),
    ("answers", answers),
];
