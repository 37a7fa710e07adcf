//! Hooks that remember what they were told.

use std::sync::{Arc, Mutex};

use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, DrainReport, EndReason, SessionEnd, SessionStart};

#[derive(Clone, Default)]
pub(crate) struct Recorder {
    starts: Arc<Mutex<Vec<SessionStart>>>,
    ends: Arc<Mutex<Vec<SessionEnd>>>,
}

impl Recorder {
    /// Adds both hooks to a builder.
    pub(crate) fn hooks(&self, builder: ActiveSessionsBuilder) -> ActiveSessionsBuilder {
        let (starts, ends) = (Arc::clone(&self.starts), Arc::clone(&self.ends));
        builder
            .on_session_start(move |start: SessionStart| {
                starts.lock().unwrap().push(start);
                async {}
            })
            .on_session_end(move |end: SessionEnd| {
                ends.lock().unwrap().push(end);
                async {}
            })
    }

    /// A handle with the defaults, and its recorder.
    pub(crate) fn sessions() -> (Self, ActiveSessions) {
        let recorder = Self::default();
        let sessions = recorder.hooks(ActiveSessions::builder()).build().unwrap();
        (recorder, sessions)
    }

    pub(crate) fn all_starts(&self) -> Vec<SessionStart> {
        self.starts.lock().unwrap().clone()
    }

    pub(crate) fn all_ends(&self) -> Vec<SessionEnd> {
        self.ends.lock().unwrap().clone()
    }

    /// The ids that were told to the start hook, sorted.
    pub(crate) fn started(&self) -> Vec<String> {
        let mut started: Vec<_> = self.all_starts().iter().map(|start| start.session.id.to_string()).collect();
        started.sort();
        started
    }

    /// What the end hook was told, as `id reason`, sorted.
    pub(crate) fn ended(&self) -> Vec<String> {
        let mut ended: Vec<_> =
            self.all_ends().iter().map(|end| format!("{} {}", end.session.id, end.reason)).collect();
        ended.sort();
        ended
    }

    /// Drains, so that every hook of before is over, and returns what the end hook was told: a session that was still
    /// active has reason `shutdown`.
    pub(crate) async fn ended_after_drain(&self, sessions: &ActiveSessions) -> Vec<String> {
        let report = sessions.drain(EndReason::Shutdown).await;
        assert!(report.is_clean(), "{report}");
        assert_sum(&report);
        self.ended()
    }
}

/// Whatever there was to see to is in one of the outcomes.
pub(crate) fn assert_sum(report: &DrainReport) {
    let outcomes = report.ended + report.failed + report.forgotten + report.unfinished.len() as u64;
    assert_eq!(report.total(), outcomes, "{report}");
}
