//! Log events and metric deltas, collected under a shard's lock and emitted after it is released: subscribers and
//! metrics recorders are user code.

use std::{sync::Arc, time::Duration};

use tracing::level_filters::LevelFilter;

use super::{Generation, PendingEnd, Tracker};
use crate::{
    observability::{CounterDelta, ReleaseCause},
    panic::catch,
};

#[derive(Debug, Default)]
pub(super) struct Effects {
    delta: CounterDelta,
    is_counted: bool,
    /// Empty unless a subscriber enables `DEBUG`.
    events: Vec<Event>,
}

#[derive(Debug)]
enum Event {
    Started(Arc<Generation>),
    Ended(Arc<Generation>, PendingEnd),
    Released(Arc<Generation>, ReleaseCause),
}

impl Effects {
    pub(super) fn started(&mut self, generation: &Arc<Generation>) {
        self.count(CounterDelta::started);
        self.log(|| Event::Started(Arc::clone(generation)));
    }

    /// The generation is no longer active.
    pub(super) fn removed(&mut self) {
        self.count(CounterDelta::left);
    }

    /// This process delivers its `session_end`.
    pub(super) fn ended(&mut self, generation: &Arc<Generation>, end: &PendingEnd) {
        self.count(|delta| delta.ended(end.reason));
        self.log(|| Event::Ended(Arc::clone(generation), end.clone()));
    }

    /// This process delivers no `session_end` for it.
    pub(super) fn released(&mut self, generation: &Arc<Generation>, cause: ReleaseCause) {
        self.count(|delta| delta.released(cause));
        self.log(|| Event::Released(Arc::clone(generation), cause));
    }

    /// Its end was taken over from a dead process.
    pub(super) fn recovered(&mut self) {
        self.count(CounterDelta::recovered);
    }

    /// Others have ended it, and it goes on as a new generation.
    pub(super) fn restarted(&mut self) {
        self.count(CounterDelta::renewed);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        !self.is_counted && self.events.is_empty()
    }

    fn count(&mut self, count: impl FnOnce(&mut CounterDelta)) {
        self.is_counted |= cfg!(feature = "metrics");
        count(&mut self.delta);
    }

    fn log(&mut self, event: impl FnOnce() -> Event) {
        // `enabled!` would call the subscriber, and a lock is held here.
        if LevelFilter::current() >= LevelFilter::DEBUG {
            self.events.push(event());
        }
    }
}

impl Tracker {
    /// Must be called with no lock held. A panic of a subscriber or recorder is caught: it must not prevent an end.
    #[inline]
    pub(super) fn emit(&self, effects: &Effects) {
        if !effects.is_empty() {
            // The panic hook has reported it.
            let _ = catch(|| self.emit_inner(effects));
        }
    }

    #[inline(never)]
    fn emit_inner(&self, effects: &Effects) {
        let Effects { delta, is_counted: _, events } = effects;
        self.meters.add(delta);
        events.iter().for_each(|event| self.log_event(event));
    }

    fn log_event(&self, event: &Event) {
        match event {
            Event::Started(generation) => {
                let resumed_from = generation.resumed_from();
                tracing::debug!(
                    name: "session-start",
                    session = %generation.id.redacted(),
                    generation = %self.generation_id(generation),
                    resumed_from = resumed_from.as_ref().map(|old| tracing::field::display(old.redacted())),
                    "a session started",
                );
            }
            Event::Ended(generation, end) => {
                let (_, duration, requests) = self.start_duration_requests(generation, end);
                tracing::debug!(
                    name: "session-end",
                    session = %generation.id.redacted(),
                    generation = %self.generation_id(generation),
                    reason = %end.reason,
                    next = end.next.as_ref().map(|next| tracing::field::display(next.id.redacted())),
                    duration_ms = millis(duration),
                    requests,
                    "a session ended",
                );
            }
            Event::Released(generation, cause) => tracing::debug!(
                name: "session-released",
                session = %generation.id.redacted(),
                generation = %self.generation_id(generation),
                cause = cause.as_str(),
                "a session was released: this process delivers no session_end for it",
            ),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
