//! Writes down every event that the hooks are told, in order.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses some of it")]

use std::sync::{Arc, Mutex};

use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, EventId, SessionEnd, SessionStart};

#[derive(Clone, Debug)]
pub enum Event {
    Start(SessionStart),
    End(SessionEnd),
}

impl Event {
    pub fn id(&self) -> &str {
        match self {
            Self::Start(start) => start.session.id.as_str(),
            Self::End(end) => end.session.id.as_str(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    /// A builder with hooks that write down everything at once.
    pub fn builder(&self) -> ActiveSessionsBuilder {
        let (starts, ends) = (self.clone(), self.clone());
        ActiveSessions::builder()
            .on_session_start(move |start| {
                starts.push(Event::Start(start));
                std::future::ready(())
            })
            .on_session_end(move |end| {
                ends.push(Event::End(end));
                std::future::ready(())
            })
    }

    pub fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub fn ends(&self) -> Vec<SessionEnd> {
        let end = |event| match event {
            Event::End(end) => Some(end),
            Event::Start(_) => None,
        };
        self.events().into_iter().filter_map(end).collect()
    }

    /// Id and reason of every end, sorted.
    pub fn reasons(&self) -> Vec<(String, EndReason)> {
        let mut ends: Vec<_> = self.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect();
        ends.sort();
        ends
    }

    /// The kinds of the events of one id, in order: `"+"` for a start, `"-"` for an end.
    pub fn order(&self, id: &str) -> String {
        let kind = |event: &Event| match event {
            Event::Start(_) => '+',
            Event::End(_) => '-',
        };
        self.events().iter().filter(|event| event.id() == id).map(kind).collect()
    }

    /// Fails if any generation had two ends.
    pub fn assert_no_generation_ended_twice(&self) {
        let mut seen = std::collections::HashSet::<EventId>::new();
        for end in self.ends() {
            assert!(seen.insert(end.event_id), "two ends for {end:?}");
        }
    }
}
