//! [`Tools`]: the host.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rmcp::{ServerHandler, handler::server::wrapper::Parameters, schemars, tool, tool_handler, tool_router};
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};

/// The tools of one session. rmcp makes one value per session.
#[derive(Clone, Debug)]
pub struct Tools {
    notes: Arc<Mutex<Vec<String>>>,
    thinking: watch::Sender<usize>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
struct Remember {
    /// The text to remember.
    text: String,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
struct Think {
    /// For how long, in milliseconds.
    millis: u64,
}

impl Tools {
    /// Counts the calls of `think` in `thinking`.
    #[must_use]
    pub fn new(thinking: watch::Sender<usize>) -> Self {
        Self { notes: Arc::default(), thinking }
    }
}

#[tool_router]
impl Tools {
    #[tool(description = "Remembers a text for the rest of the session")]
    async fn remember(&self, Parameters(Remember { text }): Parameters<Remember>) -> String {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(text);
        format!("{} remembered", notes.len())
    }

    #[tool(description = "Answers after a delay")]
    async fn think(&self, Parameters(Think { millis }): Parameters<Think>) -> String {
        self.thinking.send_modify(|calls| *calls += 1);
        sleep(Duration::from_millis(millis)).await;
        format!("thought for {millis} ms")
    }
}

#[tool_handler]
impl ServerHandler for Tools {}
