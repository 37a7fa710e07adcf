//! What a step says of sessions once no lock is held: whoever listens to a log, or records metrics, is user code.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use super::{Generation, PendingEnd, Tracker};
use crate::observability::{CounterDelta, ReleaseCause};

/// What there is to say.
#[derive(Debug, Default)]
pub(super) struct Effects {
    delta: CounterDelta,
    is_counted: bool,
    /// Only where somebody listens at `DEBUG`.
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

    /// It is no longer active.
    pub(super) fn left(&mut self) {
        self.count(CounterDelta::left);
    }

    /// Its `session_end` is ours to deliver.
    pub(super) fn ended(&mut self, generation: &Arc<Generation>, ending: &PendingEnd) {
        self.count(|delta| delta.ended(ending.reason));
        self.log(|| Event::Ended(Arc::clone(generation), ending.clone()));
    }

    /// There is none, or it is not ours.
    pub(super) fn released(&mut self, generation: &Arc<Generation>, cause: ReleaseCause) {
        self.count(|delta| delta.released(cause));
        self.log(|| Event::Released(Arc::clone(generation), cause));
    }

    /// Others have left it behind.
    pub(super) fn recovered(&mut self) {
        self.count(CounterDelta::recovered);
    }

    /// Others have ended it, and it goes on.
    pub(super) fn renewed(&mut self) {
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
        // Not `enabled!`, which may ask the subscriber: this is under a lock.
        if LevelFilter::current() >= LevelFilter::DEBUG {
            self.events.push(event());
        }
    }
}

impl Tracker {
    /// To be called with no lock held. Contained: a listener that panics keeps no session from its end.
    #[inline]
    pub(super) fn emit(&self, effects: &Effects) {
        if !effects.is_empty() {
            // The panic hook has said it.
            let _ = catch_unwind(AssertUnwindSafe(|| self.emit_inner(effects)));
        }
    }

    #[inline(never)]
    fn emit_inner(&self, effects: &Effects) {
        let Effects { delta, is_counted: _, events } = effects;
        self.meters.add(delta);
        events.iter().for_each(|event| self.log(event));
    }

    fn log(&self, event: &Event) {
        match event {
            Event::Started(generation) => {
                let resumed_from = generation.resumed_from();
                tracing::debug!(
                    name: "session-start",
                    session = %generation.id.redacted(),
                    generation = %self.generation_id(generation),
                    resumed_from = resumed_from.as_ref().map(|old| tracing::field::display(old.redacted())),
                    "a session began",
                );
            }
            Event::Ended(generation, ending) => {
                let (_, duration, requests) = self.life_of(generation, ending);
                tracing::debug!(
                    name: "session-end",
                    session = %generation.id.redacted(),
                    generation = %self.generation_id(generation),
                    reason = %ending.reason,
                    next = ending.next.as_ref().map(|next| tracing::field::display(next.id.redacted())),
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
                "a session left without a session_end of this process",
            ),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
