//! One replica of a gateway on a registry in memory, and what it told its hooks.

use std::future::pending;

use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason};

use super::{
    recorder::Recorder,
    store::{Fault, Holder, Store},
};

pub(crate) struct Replica {
    pub(crate) sessions: ActiveSessions,
    pub(crate) recorder: Recorder,
    pub(crate) holder: Holder,
}

impl Replica {
    pub(crate) fn new(store: &Store) -> Self {
        Self::with(store, |builder| builder)
    }

    pub(crate) fn with(store: &Store, f: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> Self {
        let (recorder, holder) = (Recorder::default(), store.holder());
        let sessions = f(recorder.builder().registry(holder.clone())).build().unwrap();
        Self { sessions, recorder, holder }
    }

    pub(crate) async fn note(&self, id: &str) -> bool {
        self.sessions.note(id).recorded().await
    }

    pub(crate) fn ends(&self) -> Vec<(String, EndReason)> {
        self.recorder.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect()
    }

    pub(crate) fn drive(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.sessions.shutdown_on(pending::<()>()))
    }

    /// What is left of a process that held these, and one more.
    pub(crate) async fn dead(store: &Store, ids: impl IntoIterator<Item = String>) {
        let dead = Self::new(store);
        for id in ids {
            dead.sessions.note(id);
        }
        dead.note("the-last").await;
        dead.holder.kill();
        dead.holder.set(Fault::Hangs);
    }
}
