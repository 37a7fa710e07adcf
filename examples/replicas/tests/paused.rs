//! A replica that is paused (SIGSTOP) for longer than its lease, and then continues.

use std::{path::Path, time::Duration};

use crash::{Entry, EventLog, Kind, PATIENCE};
use replicas::{Deployment, REPLICAS};
use tokio::time::{Instant, sleep};

/// Waits until the event log has a matching entry.
async fn until(event_log: &EventLog, what: &str, is_it: impl Fn(&Entry) -> bool) -> Entry {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(entry) = event_log.read().unwrap().into_iter().find(&is_it) {
            return entry;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g16_a_replica_paused_beyond_its_lease_continues_with_a_new_generation() {
    let mut deployment = Deployment::start(Path::new(env!("CARGO_BIN_EXE_replicas"))).await.unwrap();
    let event_log = EventLog::open(&deployment.event_log(), "-").unwrap();
    let (_, client) = deployment.clients().swap_remove(0);
    let id = client.open().await.unwrap();
    let first = until(&event_log, "a start", |entry| entry.kind == Kind::Start && entry.id == id).await;

    deployment.signal(0, "STOP").await.unwrap();
    let lost = until(&event_log, "an end by a survivor", |entry| entry.kind == Kind::End && entry.id == id).await;
    assert_eq!((&lost.event, lost.reason.as_str()), (&first.event, "lost"));
    assert_ne!(lost.writer, first.writer);

    deployment.signal(0, "CONT").await.unwrap();
    let is_second = |entry: &Entry| entry.id == id && entry.event != first.event;
    let second = until(&event_log, "a second generation", is_second).await;
    assert_eq!((second.kind, &second.writer), (Kind::Start, &first.writer));
    for index in 0..REPLICAS {
        let gone = deployment.stop(index).await.unwrap();
        assert_eq!(gone.code, Some(0), "{}", gone.report);
    }
    let ends: Vec<_> = event_log.read().unwrap().into_iter().filter(|entry| entry.kind == Kind::End).collect();
    let expected = [(&first.event, "lost"), (&second.event, "shutdown")];
    assert_eq!(ends.iter().map(|end| (&end.event, end.reason.as_str())).collect::<Vec<_>>(), expected);
}
