//! rmcp under the layer, over real sockets: every way in which its sessions begin and end.

#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/recorder.rs"]
mod recorder;
mod support;

mod births;
mod expiry;
mod races;
mod restart;
mod sessions;
mod stop;
mod wire;
