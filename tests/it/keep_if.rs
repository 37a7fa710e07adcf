//! `keep_if` that takes long: the deadlines hold for it too.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::time::sleep;
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, DrainReport, EndReason, EndStage, Session, signal::ShutdownRequest,
};

use crate::support::{Recorder, UnderWay, ask, assert_sum, within};

const MILLI: Duration = Duration::from_millis(1);

/// The ids that `keep_if` was asked about, in their order.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    /// A `keep_if` that blocks for 1 ms. It keeps what begins with `kept`.
    fn keep_if(&self, builder: ActiveSessionsBuilder) -> ActiveSessionsBuilder {
        let asked = self.clone();
        builder.keep_if(move |session: &Session, _| {
            thread::sleep(MILLI);
            asked.0.lock().unwrap().push(session.id.to_string());
            session.id.as_str().starts_with("kept")
        })
    }

    /// A drain of 50 ms, which is too short to ask about all.
    fn sessions(&self, recorder: &Recorder, connection_drain_timeout: Duration) -> ActiveSessions {
        let builder = self.keep_if(recorder.builder()).drain_timeout(50 * MILLI);
        builder.connection_drain_timeout(connection_drain_timeout).build().unwrap()
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn note(sessions: &ActiveSessions, prefix: &str, count: usize) {
    for n in 0..count {
        assert!(sessions.note(format!("{prefix}-{n}")).is_new());
    }
}

fn assert_never_started(report: &DrainReport, count: usize) {
    assert_eq!(report.unfinished.len(), count, "{report}");
    assert!(report.unfinished.iter().all(|end| end.stage == EndStage::NeverStarted), "{report}");
    assert_sum(report);
}

#[tokio::test]
async fn g06_after_the_deadline_of_a_drain_keep_if_is_asked_no_more() {
    let (recorder, asked) = (Recorder::default(), Asked::default());
    let sessions = asked.keep_if(recorder.builder()).drain_timeout(100 * MILLI).build().unwrap();
    note(&sessions, "a", 1000);
    let report = sessions.drain(EndReason::Restart).await;
    // A call takes 1 ms at least, and the last one may overrun.
    let in_time = asked.len();
    assert!(in_time <= 101, "{in_time} asked in 100 ms");
    assert!(report.timed_out && report.active == 1000, "{report}");
    let left = 1000 - in_time;
    assert!(report.unfinished.len() >= left, "{report}");
    assert_eq!(sessions.len(), left, "what was not asked is active");
    assert_sum(&report);
    // The next drain has a deadline of its own.
    let again = sessions.drain(EndReason::Restart).await;
    assert!(asked.len() > in_time && asked.len() <= in_time + 101, "{again}");
    assert_sum(&again);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test]
async fn g09_the_settle_timeout_bounds_keep_if_too() {
    let (recorder, asked) = (Recorder::default(), Asked::default());
    let sessions = asked
        .keep_if(recorder.builder())
        .settle_timeout(50 * MILLI)
        .drain_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    note(&sessions, "idle", 500);
    let layer = sessions.layer();
    let busy: Vec<_> = (0..50)
        .map(|n| {
            sessions.note(format!("busy-{n}"));
            UnderWay::begin(&layer, ask(&[("x-session-id", &format!("busy-{n}"))]))
        })
        .collect();
    let report = within("the drain", sessions.drain(EndReason::Restart)).await;
    assert!(report.is_clean() && report.ended == 550, "{report}");
    // The second sweep takes all of them in the order of their hashes.
    let idle_first = asked.all().iter().take_while(|id| id.starts_with("idle")).count();
    assert!(idle_first < 500, "the settling went on until every idle session was asked about");
    drop(busy);
}

#[tokio::test]
async fn g14_finish_goes_on_asking_while_the_connections_drain() {
    let (recorder, asked) = (Recorder::default(), Asked::default());
    let sessions = asked.sessions(&recorder, Duration::from_secs(60));
    note(&sessions, "kept", 100);
    note(&sessions, "ended", 100);
    let shutdown = sessions.shutdown_on(async { EndReason::Restart });
    let (seen, active, ends) = (asked.clone(), sessions.clone(), recorder.clone());
    let server = async move {
        shutdown.await;
        let left = 200 - seen.len();
        assert!(left > 100, "the drain has asked about all but {left}");
        // It is polled all the while.
        let mut polls = 0;
        while !active.is_empty() || ends.ends().len() < 100 {
            sleep(MILLI).await;
            polls += 1;
        }
        assert!(polls > 5, "the server was blocked for the whole time: {polls} polls");
    };
    let report = within("finish", sessions.finish(server)).await.report;
    assert!(!report.drain.is_clean() && report.is_clean(), "{report}");
    assert_eq!((report.sessions.kept, report.sessions.ended), (100, 100), "{report}");
    assert_eq!(asked.len(), 200);
    assert_sum(&report.drain);
    assert_sum(&report.sessions);
    assert!(recorder.ends().iter().all(|end| end.session.id.as_str().starts_with("ended")));
}

#[tokio::test]
async fn g10_finish_asks_until_the_deadline_of_the_connections_and_no_longer() {
    let (recorder, asked) = (Recorder::default(), Asked::default());
    let sessions = asked.sessions(&recorder, 300 * MILLI);
    note(&sessions, "kept", 1000);
    // The server ends with the drain.
    let report = within("finish", sessions.finish(sessions.shutdown_on(async {}))).await.report;
    let in_time = asked.len();
    assert!(in_time <= 352, "{in_time} asked in 350 ms");
    assert!(in_time > usize::try_from(report.drain.kept).unwrap(), "nothing was asked after the drain: {report}");
    assert_eq!(report.sessions.kept, in_time as u64, "{report}");
    assert_never_started(&report.sessions, 1000 - in_time);
    assert!(recorder.ends().is_empty());
}

#[tokio::test]
async fn g11_a_second_signal_ends_the_asking() {
    let (recorder, asked) = (Recorder::default(), Asked::default());
    let sessions = asked.sessions(&recorder, Duration::from_secs(60));
    note(&sessions, "kept", 20_000);
    let seen = asked.clone();
    let second = async move {
        while seen.len() < 100 {
            sleep(MILLI).await;
        }
    };
    let signal = async { ShutdownRequest::new(EndReason::Restart).forced_by(second) };
    let report = within("finish", sessions.finish(sessions.shutdown_on(signal))).await.report;
    assert!(report.forced && asked.len() < 20_000, "{report}");
    assert_sum(&report.sessions);
}
