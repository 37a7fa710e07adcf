//! A life in which everything happens that is ever said.

use std::{
    fmt,
    future::{pending, poll_fn, ready},
    io,
    task::Poll,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, EndReason, Session, SessionEnd, SessionUpdate,
    signal::{ShutdownRequest, SignalKind, terminate},
};

use crate::support::store::{Fault, Holder, Store};
use crate::support::{UnderWay, answer, ask, exchange, say};

const SECOND: Duration = Duration::from_secs(1);

/// What a client may have sent, quoted in an error.
pub(crate) const FORGED: &str = "no disk\n WARN forged: all is well\r\u{1b}[2J\u{85}forged";

/// Ids that are none.
const BAD_IDS: [&str; 3] = ["evil\n WARN forged: all is well", "\u{1b}[2Jforged", "\u{2028}forged"];

/// What no log may have: not hexadecimal, as event ids are.
pub(crate) const SECRET: &str = "~the~secret~part~";

/// An id as a server gives it out, which nobody can tell from its first eight characters.
pub(crate) fn secret(name: &str) -> String {
    format!("{name:-<8}{SECRET}")
}

/// Every name that is used below: some of them are told to nobody.
pub(crate) const NAMES: [&str; 24] = [
    "header", "reset", "old", "new", "signal", "forgot", "kept", "panics", "fails", "batch", "hangs", "guarded",
    "evicted", "late", "idle", "lost", "letter", "record", "shared", "again", "fenced", "dropped", "untimed", "slow",
];

/// An error with no text.
#[derive(Debug)]
struct Nasty;

impl fmt::Display for Nasty {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no text for you")
    }
}

impl std::error::Error for Nasty {}

pub(crate) async fn live() {
    births_and_ends().await;
    stop().await;
    second_signal().await;
    undriven().await;
    misuse().await;
    registry().await;
    replicas().await;
    dead_letter().await;
}

async fn births_and_ends() {
    let sessions = ActiveSessions::builder()
        .max_sessions(3)
        .on_session_start(async |_| tracing::info!("a host that logs"))
        .on_session_end(async |end: SessionEnd| match &end.session.id.as_str()[..5] {
            "panic" => panic!("on purpose"),
            "fails" => Err(FORGED),
            _ => Ok(()),
        })
        .on_session_end(
            async |end: SessionEnd| {
                if end.session.id == secret("fails").as_str() { Err(Nasty) } else { Ok(()) }
            },
        )
        .on_session_end_batch(10, async |_| Err::<(), _>(FORGED))
        .build()
        .unwrap();
    let layer = sessions.layer();
    let header = secret("header");
    say(&layer, &[], &[("x-session-id", &header)]).await;
    say(&layer, &[("x-session-id", &header)], &[("x-session-id", &header)]).await;
    say(&layer, &[("x-session-id", &header)], &[("x-session-end", "deleted")]).await;
    let mut signalled = answer(200, &[]);
    SessionUpdate::started(Session::try_from(secret("signal")).unwrap().with_key("telegram:42"))
        .insert_into(&mut signalled);
    let _ = exchange(&layer, ask(&[]), signalled).await;
    for bad in BAD_IDS {
        assert!(!sessions.note(bad).is_new());
    }
    assert_eq!(sessions.ignored_ids(), BAD_IDS.len() as u64);
    sessions.note(secret("reset"));
    assert!(sessions.end(secret("reset"), EndReason::Reset));
    sessions.note(secret("old"));
    assert!(sessions.compact(secret("old"), secret("new")).ended_old());
    sessions.note(secret("forgot"));
    assert!(sessions.forget(secret("forgot")));
    for name in ["panics", "fails", "batch"] {
        sessions.note(secret(name));
        assert!(sessions.end(secret(name), EndReason::Daily));
    }
    sessions.forget_all();
    // Over the cap: first somebody is idle, then nobody.
    sessions.note(secret("evicted"));
    let _guards = ["guarded", "guarded1", "guarded2", "guarded3"].map(|name| sessions.guard(secret(name)).unwrap());
    assert!(!sessions.contains(secret("evicted")));
    let report = sessions.drain(EndReason::Restart).await;
    assert!(report.failed > 0 && report.unfinished.is_empty(), "{report}");
}

/// A server that goes on until it is cut, with a response that never ends.
async fn stop() {
    let sessions = ActiveSessions::builder()
        .connection_drain_timeout(SECOND)
        .keep_if(|session, _| match &session.id.as_str()[..4] {
            "kept" => true,
            "pani" => panic!("on purpose"),
            _ => false,
        })
        .on_session_end(|end: SessionEnd| async move {
            if end.session.id == secret("hangs").as_str() {
                pending::<()>().await;
            }
        })
        .build()
        .unwrap();
    let _open = UnderWay::begin(&sessions.layer(), ask(&[]));
    for name in ["kept", "panics", "hangs"] {
        sessions.note(secret(name));
    }
    let signal = async { Err::<(), _>(io::Error::other(FORGED)) };
    let shutdown = sessions.shutdown_on(signal);
    let late = sessions.clone();
    let server = async move {
        shutdown.await;
        late.note(secret("late"));
        pending::<()>().await;
    };
    let report = sessions.finish(server).await.report;
    assert!(report.connections.timed_out && !report.is_clean());
    assert_eq!((report.sessions.kept, report.sessions.unfinished.len()), (1, 1), "{report}");
}

/// A signal that panics, one that cannot be had, and one that comes twice; and a stop that is clean.
async fn second_signal() {
    let quiet = || ActiveSessions::builder().build().unwrap();
    let panics = async {
        if true {
            panic!("on purpose")
        }
    };
    let sessions = quiet();
    sessions.shutdown_on(panics).await;
    let _impossible = terminate().on(SignalKind::from_raw(9), EndReason::Restart);
    let sessions = ActiveSessions::builder().on_session_end(|_| pending::<()>()).build().unwrap();
    sessions.note(secret("hangs"));
    sessions.shutdown_on(ready(ShutdownRequest::new(EndReason::Restart).forced_by(sleep(SECOND)))).await;
    assert!(sessions.finish(pending::<()>()).await.report.forced);
    let sessions = quiet();
    let shutdown = sessions.shutdown_on(ready(()));
    assert!(sessions.finish(shutdown).await.report.is_clean());
}

async fn undriven() {
    let sessions = ActiveSessions::builder().idle_timeout(SECOND).build().unwrap();
    sessions.note(secret("idle"));
    for n in 0..30 {
        sleep(SECOND).await;
        sessions.note(secret(&format!("again{n}")));
    }
    assert!(!sessions.contains(secret("idle")));
}

/// What `warnings.rs` has in detail.
async fn misuse() {
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note(secret("dropped"));
    let mut polls = 0;
    let server = poll_fn(|cx| {
        polls += 1;
        if polls == 1 {
            std::thread::sleep(SECOND);
            cx.waker().wake_by_ref();
        }
        Poll::<()>::Pending
    });
    assert!(timeout(31 * SECOND, sessions.finish(server)).await.is_err());
    drop(sessions);

    let build = || ActiveSessions::builder().on_session_end(|_| ready(())).build();
    let sessions = std::thread::spawn(build).join().unwrap().unwrap();
    let untimed = tokio::runtime::Builder::new_current_thread().build().unwrap();
    {
        let _entered = untimed.enter();
        sessions.note(secret("untimed"));
        assert!(sessions.end(secret("untimed"), EndReason::Reset));
    }
    untimed.shutdown_background();
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
}

fn recorded(holder: &Holder, hook: fn(SessionEnd) -> bool) -> ActiveSessionsBuilder {
    ActiveSessions::builder().registry(holder.clone()).on_session_end(move |end: SessionEnd| async move {
        if hook(end) {
            pending::<()>().await;
        }
    })
}

/// A registry that is down, back, emptied, and nobody drives it; then a driver, with a lease that is over.
async fn registry() {
    let (store, elsewhere) = (Store::default(), Store::default());
    let holder = store.holder();
    let sessions = recorded(&holder, |_| false).build().unwrap();
    assert!(sessions.note(secret("record")).recorded().await);
    holder.set(Fault::Down);
    assert!(!sessions.note(secret("again")).recorded().await);
    assert!(sessions.is_degraded());
    holder.set(Fault::None);
    for n in 0..4 {
        sleep(10 * SECOND).await;
        assert!(sessions.note(secret(&format!("again{n}"))).recorded().await);
    }
    holder.set(Fault::Slow);
    assert!(sessions.note(secret("slow")).recorded().await);
    assert!(sessions.is_degraded());
    holder.set(Fault::None);
    store.flush();
    assert!(sessions.note(secret("late")).recorded().await);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note(secret("fenced")).recorded().await;
    holder.kill();
    sleep(5 * SECOND).await;
    // Somebody else's process dies while this one serves.
    let dead = store.holder();
    assert!(recorded(&dead, |_| false).build().unwrap().note(secret("lost")).recorded().await);
    dead.kill();
    sleep(5 * SECOND).await;
    assert!(!store.active().contains(&secret("lost")));
    driver.abort();
    holder.set(Fault::Down);
    let report = sessions.finish(ready(())).await.report;
    assert!(report.sessions.handed_over > 0, "{report}");

    let down = elsewhere.holder();
    let sessions = recorded(&down, |_| false).build().unwrap();
    assert!(sessions.recover().await.is_clean());
    down.set(Fault::Down);
    assert!(sessions.recover().await.error.is_some());
}

/// A session that two replicas hold.
async fn replicas() {
    let store = Store::default();
    let [one, two] = [(); 2].map(|()| recorded(&store.holder(), |_| false).build().unwrap());
    for sessions in [&one, &two] {
        assert!(sessions.note(secret("shared")).recorded().await);
        assert!(sessions.note(secret("again")).recorded().await);
    }
    assert!(one.end(secret("again"), EndReason::Deleted));
    assert_eq!(one.drain(EndReason::Restart).await.held_elsewhere, 1);
    assert_eq!(two.drain(EndReason::Restart).await.ended_elsewhere, 1);
}

/// An end on which one process after the other dies.
async fn dead_letter() {
    let store = Store::default();
    for n in 0..7 {
        let holder = store.holder();
        let sessions = recorded(&holder, |_| true).recovery_timeout(SECOND).build().unwrap();
        if n == 0 {
            assert!(sessions.note(secret("letter")).recorded().await);
        }
        let _ = sessions.recover().await;
        let _ = sessions.drain(EndReason::Shutdown).await;
        holder.kill();
    }
    assert_eq!(store.dead_letters().len(), 1);
}
