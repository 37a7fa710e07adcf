//! rmcp with the layer, over real sockets: every way in which its sessions start and end.

#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/recorder.rs"]
mod recorder;
mod support;

mod expiry;
mod initialize;
mod races;
mod restart;
mod sessions;
mod shutdown;
mod wire;
