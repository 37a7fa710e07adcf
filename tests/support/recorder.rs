//! Writes down every event that the hooks are told, in order.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, DrainReport, EndReason, GenerationId, SessionEnd, SessionStart,
};

#[allow(clippy::large_enum_variant, reason = "a test has few of them")]
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Start(SessionStart),
    End(SessionEnd),
}

impl Event {
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Start(start) => start.session.id.as_str(),
            Self::End(end) => end.session.id.as_str(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    /// Adds both hooks to a builder. They write down everything at once.
    pub(crate) fn hooks(&self, builder: ActiveSessionsBuilder) -> ActiveSessionsBuilder {
        let (starts, ends) = (self.clone(), self.clone());
        builder
            .on_session_start(move |start| {
                starts.push(Event::Start(start));
                std::future::ready(())
            })
            .on_session_end(move |end| {
                ends.push(Event::End(end));
                std::future::ready(())
            })
    }

    /// A builder with both hooks.
    pub(crate) fn builder(&self) -> ActiveSessionsBuilder {
        self.hooks(ActiveSessions::builder())
    }

    /// As [`builder`](Self::builder), but every end takes so long, and is written down when it is over.
    pub(crate) fn slow_builder(
        &self,
        delay: impl Fn(&SessionEnd) -> Duration + Send + Sync + 'static,
    ) -> ActiveSessionsBuilder {
        let (starts, ends) = (self.clone(), self.clone());
        ActiveSessions::builder()
            .on_session_start(move |start| {
                starts.push(Event::Start(start));
                std::future::ready(())
            })
            .on_session_end(move |end| {
                let (ends, delay) = (ends.clone(), delay(&end));
                async move {
                    tokio::time::sleep(delay).await;
                    ends.push(Event::End(end));
                }
            })
    }

    /// A handle with the defaults, and its recorder.
    pub(crate) fn sessions() -> (Self, ActiveSessions) {
        let recorder = Self::default();
        let sessions = recorder.builder().build().unwrap();
        (recorder, sessions)
    }

    pub(crate) fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn starts(&self) -> Vec<SessionStart> {
        let start = |event| match event {
            Event::Start(start) => Some(start),
            Event::End(_) => None,
        };
        self.events().into_iter().filter_map(start).collect()
    }

    pub(crate) fn ends(&self) -> Vec<SessionEnd> {
        let end = |event| match event {
            Event::End(end) => Some(end),
            Event::Start(_) => None,
        };
        self.events().into_iter().filter_map(end).collect()
    }

    /// The ids that were told to the start hook, sorted.
    pub(crate) fn started(&self) -> Vec<String> {
        let mut started: Vec<_> = self.starts().iter().map(|start| start.session.id.to_string()).collect();
        started.sort();
        started
    }

    /// Id and reason of every end, sorted.
    pub(crate) fn reasons(&self) -> Vec<(String, EndReason)> {
        let mut ends: Vec<_> = self.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect();
        ends.sort();
        ends
    }

    /// What the end hook was told, as `id reason`, sorted.
    pub(crate) fn ended(&self) -> Vec<String> {
        let mut ended: Vec<_> = self.ends().iter().map(|end| format!("{} {}", end.session.id, end.reason)).collect();
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

    /// The kinds of the events of one id, in order: `"+"` for a start, `"-"` for an end.
    pub(crate) fn order(&self, id: &str) -> String {
        let kind = |event: &Event| match event {
            Event::Start(_) => '+',
            Event::End(_) => '-',
        };
        self.events().iter().filter(|event| event.id() == id).map(kind).collect()
    }

    /// Fails if any generation had two ends.
    pub(crate) fn assert_no_generation_ended_twice(&self) {
        let mut seen = std::collections::HashSet::<GenerationId>::new();
        for end in self.ends() {
            assert!(seen.insert(end.generation), "two ends for {end:?}");
        }
    }
}

/// Whatever there was to see to is in one of the outcomes.
pub(crate) fn assert_sum(report: &DrainReport) {
    let over = report.ended + report.failed + report.kept + report.forgotten;
    let elsewhere = report.held_elsewhere + report.ended_elsewhere + report.handed_over;
    assert_eq!(report.total(), over + elsewhere + report.unfinished_count, "{report}");
}
