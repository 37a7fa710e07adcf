//! Shared by the tests: the built program as a child process, a client for its gateway, and a plugin that records its
//! calls.
#![allow(dead_code, unused_imports, reason = "each test crate uses a part of it")]

mod child;
mod client;
mod log;

use std::{future::Future, time::Duration};

pub(crate) use self::{
    child::{Dir, Gateway, Receiver, program},
    client::{Client, busy_client},
    log::{Faults, Log},
};

/// Longer than any step of a test takes on a busy machine; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, with a limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Polls a condition until it holds, with a limit.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
