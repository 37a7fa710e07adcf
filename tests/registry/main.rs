//! What the handle does with a registry: order with hooks, recovery, replicas, degrading.

mod outages;
#[path = "../support/recorder.rs"]
mod recorder;
mod records;
#[path = "../support/replica.rs"]
mod replica;
mod replicas;
#[path = "../support/store.rs"]
mod store;
mod support;
