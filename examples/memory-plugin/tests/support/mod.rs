//! What the tests share: the built program as a child process, a client for its gateway, and a plugin that writes down
//! what comes to it.
#![allow(dead_code, reason = "each test crate uses a part of it")]

mod child;
mod client;
mod log;

use std::{future::Future, time::Duration};

pub(crate) use self::{
    child::{Dir, Gateway, Receiver, program},
    client::{Client, busy_client},
    log::{Faults, Log},
};

/// More than any step of a test needs on a busy machine; only what hangs takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Waits for a condition that nobody can be told of.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
