//! What a step says of sessions once no lock is held: whoever listens to a log, or records metrics, is user code.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use super::{Ending, Entry, Tracker};
use crate::observability::{LetGo, Tally};

/// What there is to say.
#[derive(Debug, Default)]
pub(super) struct Telling {
    tally: Tally,
    is_counted: bool,
    /// Only where somebody listens at `DEBUG`.
    events: Vec<Event>,
}

#[derive(Debug)]
enum Event {
    Born(Arc<Entry>),
    Ended(Arc<Entry>, Ending),
    LetGo(Arc<Entry>, LetGo),
}

impl Telling {
    pub(super) fn born(&mut self, entry: &Arc<Entry>) {
        self.count(Tally::born);
        self.say(|| Event::Born(Arc::clone(entry)));
    }

    /// It is no longer active.
    pub(super) fn left(&mut self) {
        self.count(Tally::left);
    }

    /// Its `session_end` is ours to deliver.
    pub(super) fn ended(&mut self, entry: &Arc<Entry>, ending: &Ending) {
        self.count(|tally| tally.ended(ending.reason));
        self.say(|| Event::Ended(Arc::clone(entry), ending.clone()));
    }

    /// There is none, or it is not ours.
    pub(super) fn let_go(&mut self, entry: &Arc<Entry>, how: LetGo) {
        self.count(|tally| tally.let_go(how));
        self.say(|| Event::LetGo(Arc::clone(entry), how));
    }

    /// Others have left it behind.
    pub(super) fn recovered(&mut self) {
        self.count(Tally::recovered);
    }

    /// Others have ended it, and it goes on.
    pub(super) fn renewed(&mut self) {
        self.count(Tally::renewed);
    }

    fn count(&mut self, count: impl FnOnce(&mut Tally)) {
        self.is_counted |= cfg!(feature = "metrics");
        count(&mut self.tally);
    }

    fn say(&mut self, event: impl FnOnce() -> Event) {
        // Not `enabled!`, which may ask the subscriber: this is under a lock.
        if LevelFilter::current() >= LevelFilter::DEBUG {
            self.events.push(event());
        }
    }
}

impl Tracker {
    /// To be called with no lock held. Contained: a listener that panics keeps no session from its end.
    #[inline]
    pub(super) fn tell(&self, telling: &Telling) {
        if telling.is_counted || !telling.events.is_empty() {
            // The panic hook has said it.
            let _ = catch_unwind(AssertUnwindSafe(|| self.tell_unguarded(telling)));
        }
    }

    #[inline(never)]
    fn tell_unguarded(&self, telling: &Telling) {
        let Telling { tally, is_counted: _, events } = telling;
        self.meters.add(tally);
        events.iter().for_each(|event| self.say(event));
    }

    fn say(&self, event: &Event) {
        match event {
            Event::Born(entry) => {
                let resumed_from = entry.resumed_from();
                tracing::debug!(
                    name: "session-start",
                    session = %entry.id.redacted(),
                    event_id = %self.event_id(entry),
                    resumed_from = resumed_from.as_ref().map(|old| tracing::field::display(old.redacted())),
                    "a session began",
                );
            }
            Event::Ended(entry, ending) => {
                let (_, duration, requests) = self.life_of(entry, ending);
                tracing::debug!(
                    name: "session-end",
                    session = %entry.id.redacted(),
                    event_id = %self.event_id(entry),
                    reason = %ending.reason,
                    next = ending.next.as_ref().map(|next| tracing::field::display(next.id.redacted())),
                    duration_ms = millis(duration),
                    requests,
                    "a session ended",
                );
            }
            Event::LetGo(entry, how) => tracing::debug!(
                name: "session-let-go",
                session = %entry.id.redacted(),
                event_id = %self.event_id(entry),
                how = how.as_str(),
                "a session left without a session_end of this process",
            ),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
