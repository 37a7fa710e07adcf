//! Events and spans of `tracing`, and metrics.
//!
//! Names and fields are stable: a change to them is a change to the API. Ids are credentials, so a log gets a
//! [prefix](crate::SessionId::redacted) of them, and a metric none; `generation` identifies a generation and is not a
//! credential. Control characters in the errors of hooks, signals and registries are escaped, so that no line of the
//! log can be forged through them. The rest of such an error is logged as it is: an error that quotes an id puts it
//! into the log.
//!
//! # Events
//!
//! The name is the metadata's, which most formats do not show. The target is the emitting module, under
//! `tower_session_end`. `session` is the redacted id. Times are in milliseconds.
//!
//! | event | level | fields | when |
//! |---|---|---|---|
//! | `session-start` | `DEBUG` | `session`, `generation`, `resumed_from?` | a session started |
//! | `session-end` | `DEBUG` | `session`, `generation`, `reason`, `next?`, `duration_ms`, `requests` | a session ended, and this process delivers its `session_end` |
//! | `session-released` | `DEBUG` | `session`, `generation`, `cause` | a session left without a `session_end` of this process: `forgotten`, `kept`, `held_elsewhere`, `ended_elsewhere`, `handed_over` |
//! | `session-id-ignored` | `WARN` | | an id is not valid; logged once, then counted |
//! | `session-hook-failed` | `WARN` | `session?`, `generation?`, `hook?`, `error?` | a hook returned an error, panicked, or took longer than its timeout; no fields if showing the error panics; in a drain the first 256 |
//! | `session-keep-if-panicked` | `WARN` | `session` | `keep_if` panicked; the session is ended |
//! | `session-cap-exceeded` | `WARN` | `max_sessions` | there are more sessions than `max_sessions`, and none is idle; logged once |
//! | `session-expiry-undriven` | `WARN` | | `idle_timeout` is set, and no driver is polled; logged once |
//! | `session-no-hook` | `WARN` | | a handle was built without any hook |
//! | `session-runtime-without-timer` | `ERROR` | | a tokio runtime has no timer, so no hook can run in it; logged once |
//! | `session-finish-undriven` | `WARN` | | [`finish`](crate::ActiveSessions::finish) has run for 30 s, and no `shutdown_on` was polled; logged once |
//! | `session-server-blocked` | `WARN` | `blocked_ms` | one poll of the server in `finish` took 1 s or longer; logged once |
//! | `session-handle-dropped` | `WARN` | `sessions` | the last handle was dropped with this many active sessions, and no drain had begun |
//! | `session-signal-failed` | `ERROR` | `error` | a shutdown signal failed or panicked: the shutdown begins |
//! | `session-signal-unavailable` | `ERROR` | `signal`, `error` | a signal of the system cannot be listened to |
//! | `session-shutdown` | `INFO` | `reason`, `sessions` | a shutdown was requested, with this many active sessions |
//! | `session-shutdown-forced` | `WARN` | | a second signal came: the shutdown no longer waits |
//! | `session-end-drain` | `INFO`, `WARN` | `reason`, `active`, `already_ending`, `late_starts`, `ended`, `failed`, `kept`, `forgotten`, `held_elsewhere`, `ended_elsewhere`, `handed_over`, `at_work`, `unfinished`, `timed_out`, `elapsed_ms` | a drain is over; a warning unless it is [clean](crate::DrainReport::is_clean); once more at the end if only what came after it was not |
//! | `session-finish` | `INFO`, `WARN` | `signalled`, `forced`, `ended`, `failed`, `unfinished`, `timed_out`, `open_responses`, `elapsed_ms` | a shutdown is over; a warning if the connection drain timed out |
//! | `session-recovery` | `INFO`, `WARN` | `found`, `ended`, `failed`, `unfinished`, `dead_letters`, `error?` | [`recover`](crate::ActiveSessions::recover) is over; a warning unless it is [clean](crate::RecoveryReport::is_clean) |
//! | `session-recovered` | `INFO` | `found` | a heartbeat found pending ends of dead processes |
//! | `session-end-dead-letter` | `ERROR` | `session`, `generation`, `reason`, `error` | the hooks of an end have failed five times, or the process has ended in each of five calls: the registry keeps the end for an operator |
//! | `session-registry-slow` | `WARN` | | the registry takes longer than 250 ms: starts do not wait for their records |
//! | `session-registry-degraded` | `WARN` | `error` | the registry does not answer: sessions are kept in memory |
//! | `session-registry-restored` | `INFO` | `missed` | it answers in time again; the number of changes that waited for it |
//! | `session-registry-fenced` | `WARN` | | the lease expired, and other processes have ended the sessions of this one |
//! | `session-registry-data-lost` | `WARN` | | the registry has lost its records |
//! | `session-registry-undriven` | `WARN` | | there is a registry, and no driver is polled; logged once |
//! | `session-registry-lease-not-released` | `WARN` | `error` | the lease could not be released at the end |
//!
//! And of user code, of layers, and of the registries themselves:
//!
//! | event | level | when |
//! |---|---|---|
//! | *`session-protocol-panicked`* | `WARN` | a protocol panicked: the exchange goes on as if it had returned no update; logged once |
//! | *`session-layers-nested`* | `WARN` | two layers of one handle saw a request in the same session: it is counted once (feature `axum`); logged once |
//! | *`session-registry-panicked`* | `WARN` | a registry panicked when asked for its lease: the lease is assumed to be valid |
//! | *`session-registry-set-aside`* | `ERROR` | SQLite: a damaged file was renamed, and a new one created |
//! | *`session-hook-closed-transaction`* | `ERROR` | a transaction hook has ended the transaction of the registry itself; the changes are repeated without it, and its ends count as failed |
//! | *`session-registry-unreadable`* | `ERROR`, `WARN` | a record cannot be read |
//! | *`session-registry-details-lost`* | `ERROR`, `WARN` | the details of a recorded session cannot be read; its end is delivered without them |
//! | *`session-registry-large`* | `DEBUG` | SQLite: the file is so large that a part of it was checked at the start |
//! | *`session-registry-unwatched`* | `WARN` | Redis: the user may not run INFO; PostgreSQL: the user may not read the timeline of the log; so neither a failover to a server that lagged nor, on Redis, an eviction policy that removes records is detected |
//!
//! # Spans
//!
//! | span | level | fields | around |
//! |---|---|---|---|
//! | `session-drain` | `INFO` | `reason` | a drain |
//! | `session-hook` | `DEBUG` | `kind`, `hook`, `session?`, `generation?`, `reason?`, `sessions?` | each poll of a hook, so that its own events belong to its session; for a batch, the number of its `sessions` |
//!
//! # Metrics
//!
//! With the feature `metrics` they go to the recorder of the [`metrics`](https://docs.rs/metrics) facade that is
//! installed when a handle is **built**: install yours before. Several handles in one process add up.
//!
//! | metric | kind | labels | what |
//! |---|---|---|---|
//! | `session_active` | gauge | | active sessions |
//! | `session_starts_total` | counter | | sessions that started |
//! | `session_ends_total` | counter | `reason` | sessions whose `session_end` this process delivers; an eviction has the reason `evicted`, an expiry `idle` or `expired`, a doubt `unknown` |
//! | `session_releases_total` | counter | `cause` | sessions that left without one: `forgotten`, `kept`, `held_elsewhere`, `ended_elsewhere`, `handed_over` |
//! | `session_recovered_total` | counter | | ends that were recovered from dead processes; `session_ends_total` counts them too |
//! | `session_dead_letters` | gauge | | ends in the registry whose hooks have failed too often, of all processes, at the last heartbeat |
//! | `session_ignored_ids_total` | counter | | ids that are not valid |
//! | `session_hook_duration_seconds` | histogram | `kind`, `hook` | calls of a hook, `kind` being `start`, `end`, `batch`, `transaction_start` or `transaction_end`; a call that is unfinished when `finish` returns is not counted |
//! | `session_hook_failures_total` | counter | `kind`, `hook` | the calls that returned an error, panicked, or took too long |
//! | `session_drain_duration_seconds` | histogram | | drains |
//! | `session_unfinished_ends` | gauge | | ends that the last report of a shutdown lists as unfinished |
//! | `session_registry_degraded` | gauge | | handles whose registry is slow or does not answer |
//! | `session_registry_degradations_total` | counter | | how often that began |
//!
//! Invariant when idle: starts + recovered = active + ends + releases. (An end whose lease expired before its hooks
//! were called counts as both.) Labels have few values: the reasons, the causes, and the names of your hooks.
//!
//! A process that has exited cannot be scraped: to see the numbers of a shutdown, keep the listener of the exporter
//! open until `finish` has returned, as `examples/metrics` does, or push them.
//!
//! # Examples
//!
//! The events of this crate alone, and all of them:
//!
//! ```
//! use tracing_subscriber::{filter::Targets, prelude::*};
//!
//! let only_sessions = Targets::new().with_target("tower_session_end", tracing::Level::DEBUG);
//! tracing_subscriber::registry().with(tracing_subscriber::fmt::layer()).with(only_sessions).init();
//! ```

mod escape;
mod metrics;
mod spans;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use self::metrics::TransactionMeters;
pub(crate) use self::{
    escape::{error_chain, escape_controls},
    metrics::{CounterDelta, HookMeter, Meters, RegistryMeter, ReleaseCause, Stopwatch},
    spans::{HookEvent, HookSpan},
};

/// An event at `INFO` if `$is_well`, at `WARN` otherwise.
macro_rules! log_outcome {
    ($is_well:expr, $($event:tt)+) => {
        if $is_well { tracing::info!($($event)+) } else { tracing::warn!($($event)+) }
    };
}
pub(crate) use log_outcome;
