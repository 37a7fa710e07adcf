//! What this crate says about itself: events and spans of `tracing`, and metrics.
//!
//! Names and fields are stable: a change to them is a change to the API. Ids are credentials, so a log gets a
//! [prefix](crate::SessionId::redacted) of them, and a metric nothing; `generation` names a generation without being one.
//! Control characters in the errors of hooks, signals and registries are escaped, so that nobody forges a line of the log
//! through them. What such an error says otherwise is its author's choice: one that quotes an id puts it into the log.
//!
//! # Events
//!
//! The name is the metadata's, which most formats do not show; the target is the module that speaks, under
//! `tower_session_end`. `session` is the redacted id. Times are in milliseconds.
//!
//! | event | level | fields | when |
//! |---|---|---|---|
//! | `session-start` | `DEBUG` | `session`, `generation`, `resumed_from?` | a session was noted anew |
//! | `session-end` | `DEBUG` | `session`, `generation`, `reason`, `next?`, `duration_ms`, `requests` | its `session_end` is owed, and this process delivers it |
//! | `session-released` | `DEBUG` | `session`, `generation`, `how` | it left with no `session_end` of this process: `forgotten`, `kept`, `held_elsewhere`, `ended_elsewhere`, `handed_over` |
//! | `session-id-ignored` | `WARN` | | an id is not valid; said once, then counted |
//! | `session-hook-failed` | `WARN` | `session?`, `generation?`, `hook?`, `error?` | a hook erred, panicked, or took longer than its timeout; none of the fields if the error cannot be shown; in a drain the first 256 |
//! | `session-keep-if-panicked` | `WARN` | `session` | the session is ended |
//! | `session-cap-exceeded` | `WARN` | `max_sessions` | there are more, and none at rest; said once |
//! | `session-expiry-undriven` | `WARN` | | idle expiry is on, and nobody polls a driver; said once |
//! | `session-signal-failed` | `ERROR` | `error` | a shutdown signal erred or panicked: it stops |
//! | `session-signal-unavailable` | `ERROR` | `signal`, `error` | a signal of the system cannot be listened to |
//! | `session-shutdown` | `INFO` | `reason`, `sessions` | told to stop, with so many active |
//! | `session-shutdown-forced` | `WARN` | | told a second time: nobody waits any more |
//! | `session-end-drain` | `INFO`, `WARN` | `reason`, `active`, `already_ending`, `late_starts`, `ended`, `failed`, `kept`, `forgotten`, `held_elsewhere`, `ended_elsewhere`, `handed_over`, `unfinished`, `timed_out`, `elapsed_ms` | a drain is over; a warning unless it is [clean](crate::DrainReport::is_clean); once more at the end if only what came after it was not |
//! | `session-finish` | `INFO`, `WARN` | `signalled`, `forced`, `ended`, `failed`, `unfinished`, `timed_out`, `open_responses`, `elapsed_ms` | a stop is over; a warning if connections were cut |
//! | `session-recovery` | `INFO`, `WARN` | `found`, `ended`, `failed`, `unfinished`, `given_up`, `error?` | [`recover`](crate::ActiveSessions::recover) is over; a warning unless it is [clean](crate::RecoveryReport::is_clean) |
//! | `session-recovered` | `INFO` | `found` | ends of processes that are gone were found later |
//! | `session-end-given-up` | `ERROR` | `session`, `generation`, `reason` | an end was tried five times, and each time its process died |
//! | `session-registry-degraded` | `WARN` | `error` | the registry does not answer in time: on in memory |
//! | `session-registry-restored` | `INFO` | `missed`, `dropped` | it answers again; so many changes are made up for, or are lost |
//! | `session-registry-fenced` | `WARN` | | the lease was over, and others have ended what was held |
//! | `session-registry-data-lost` | `WARN` | | the registry has lost its records |
//! | `session-registry-undriven` | `WARN` | | there is a registry, and nobody polls a driver; said once |
//! | `session-registry-lease-not-released` | `WARN` | `error` | the lease could not be given back at the end |
//!
//! And of the code that users bring, and of registries themselves:
//!
//! | event | level | when |
//! |---|---|---|
//! | *`session-protocol-panicked`* | `WARN` | a protocol of yours panicked: nothing was said of sessions; said once |
//! | *`session-registry-panicked`* | `WARN` | one panicked when it was asked whether its lease runs: it is taken to run |
//! | *`session-registry-set-aside`* | `ERROR` | SQLite: a damaged file was renamed, and a new one begun |
//! | *`session-registry-unreadable`* | `ERROR`, `WARN` | a record cannot be read |
//! | *`session-registry-details-lost`* | `ERROR`, `WARN` | the details of a recorded session cannot be read; its end is delivered without them |
//! | *`session-registry-large`* | `DEBUG` | SQLite: the file is so large that only a part of it was checked at the start |
//! | *`session-registry-unwatched`* | `WARN` | Redis: the user may not run INFO, so that a failover to a server that lagged is not noticed |
//!
//! # Spans
//!
//! | span | level | fields | around |
//! |---|---|---|---|
//! | `session-drain` | `INFO` | `reason` | a drain, for whoever waits for it |
//! | `session-hook` | `DEBUG` | `kind`, `hook`, `session?`, `generation?`, `reason?`, `sessions?` | each poll of a hook: what it logs belongs to its session; of a batch there is the number of its `sessions` |
//!
//! # Metrics
//!
//! With the feature `metrics` they go to the recorder of the [`metrics`](https://docs.rs/metrics) facade that is there when a
//! handle is **built**: install yours before. Several handles in a process add up.
//!
//! | metric | kind | labels | what |
//! |---|---|---|---|
//! | `session_active` | gauge | | sessions that are active |
//! | `session_starts_total` | counter | | sessions that were noted anew |
//! | `session_ends_total` | counter | `reason` | sessions whose `session_end` this process delivers; an eviction is the reason `evicted`, an expiry `idle` |
//! | `session_releases_total` | counter | `how` | sessions that left without one: `forgotten`, `kept`, `held_elsewhere`, `ended_elsewhere`, `handed_over` |
//! | `session_recovered_total` | counter | | ends that were taken over from processes that are gone; they count in `session_ends_total` too |
//! | `session_given_up_total` | counter | | ends that were tried five times, and are given up |
//! | `session_ignored_ids_total` | counter | | ids that are not valid |
//! | `session_hook_duration_seconds` | histogram | `kind`, `hook` | calls of a hook, `kind` being `start`, `end` or `batch`; one that is not over when `finish` is counts nowhere |
//! | `session_hook_failures_total` | counter | `kind`, `hook` | those of them that erred, panicked, or took too long |
//! | `session_drain_duration_seconds` | histogram | | drains |
//! | `session_unfinished_ends` | gauge | | ends that the last report of a stop lists as unfinished |
//! | `session_registry_degraded` | gauge | | handles that go on in memory because their registry is out of reach |
//! | `session_registry_degradations_total` | counter | | how often it came to that |
//!
//! At rest, births and recovered ones are those that are active, have ended, or were let go (an end of ours whose lease was
//! over before its hooks were called is handed over, and counts in both). Labels have few values: the reasons, the words
//! above, and the names of your hooks.
//!
//! A process that stops is scraped no more: to see a stop's numbers, keep the listener of the exporter open until `finish`
//! has returned, as `examples/metrics` does, or push them.
//!
//! # Examples
//!
//! Only what concerns sessions, and everything of it:
//!
//! ```
//! use tracing_subscriber::{filter::Targets, prelude::*};
//!
//! let only_sessions = Targets::new().with_target("tower_session_end", tracing::Level::DEBUG);
//! tracing_subscriber::registry().with(tracing_subscriber::fmt::layer()).with(only_sessions).init();
//! ```

mod facade;
mod meters;
mod spans;
mod text;

pub(crate) use self::{
    facade::Stopwatch,
    meters::{CounterDelta, HookMeter, Meters, RegistryMeter, ReleaseCause},
    spans::{HookEvent, HookSpan},
    text::escape_controls,
};

/// An event at `INFO` if all went well, else at `WARN`.
macro_rules! log_outcome {
    ($is_well:expr, $($event:tt)+) => {
        if $is_well { tracing::info!($($event)+) } else { tracing::warn!($($event)+) }
    };
}
pub(crate) use log_outcome;
