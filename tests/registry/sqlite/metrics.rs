//! The calls of a transaction hook, counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use tower_session_end::{
    ActiveSessions, BoxError, EndReason, SessionEnd, SessionStart,
    registry::{SqliteRegistry, SqliteTransactionHook, rusqlite::Transaction},
};

use super::support::{Dir, until};

/// How often each metric of a hook was recorded, by its name and its kind.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, u64>>>);

struct Count {
    counts: Counts,
    key: String,
}

impl Counts {
    fn count(&self, key: &Key) -> Arc<Count> {
        let kind = key.labels().find(|label| label.key() == "kind").map(metrics::Label::value).unwrap_or_default();
        Arc::new(Count { counts: self.clone(), key: format!("{} {kind}", key.name()) })
    }

    fn of(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

impl Count {
    fn add(&self, n: u64) {
        *self.counts.0.lock().unwrap().entry(self.key.clone()).or_default() += n;
    }
}

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.add(value);
    }

    fn absolute(&self, _: u64) {}
}

impl HistogramFn for Count {
    fn record(&self, _: f64) {
        self.add(1);
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.count(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.count(key))
    }
}

/// It refuses the end of `bad`.
struct Chats;

impl SqliteTransactionHook for Chats {
    fn session_start(&self, _: &Transaction<'_>, _: &SessionStart) -> Result<(), BoxError> {
        Ok(())
    }

    fn session_end(&self, _: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError> {
        if ends.iter().any(|end| end.session.id == *"bad") { Err("bad".into()) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_a_transaction_hook_are_counted_and_its_errors_too() {
    let (dir, counts) = (Dir::new(), Counts::default());
    let builder = SqliteRegistry::builder(dir.file());
    let registry = with_local_recorder(&counts, || builder.transaction_hook("chats", Chats)).open().unwrap();
    let sessions = ActiveSessions::builder().registry(registry).redeliver_failed(false).build().unwrap();
    for id in ["good", "bad"] {
        assert!(sessions.note(id).recorded().await);
    }
    assert_eq!(counts.of("session_hook_duration_seconds transaction_start"), 2);
    sessions.end("good", EndReason::Reset);
    until("its end", || counts.of("session_hook_duration_seconds transaction_end") == 1);
    assert_eq!(counts.of("session_hook_failures_total transaction_end"), 0);
    let report = sessions.drain(EndReason::Shutdown).await;
    // The first end is counted before its transaction is committed.
    assert_eq!(report.failed, 1, "{report}");
    assert_eq!(counts.of("session_hook_failures_total transaction_end"), 1);
    assert_eq!(counts.of("session_hook_failures_total transaction_start"), 0);
}
