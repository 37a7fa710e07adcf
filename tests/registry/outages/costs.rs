//! Groups: how many commits and scripts a drain of 10,000 takes, and that a known session takes none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tower_session_end::{
    ActiveSessions, EndReason,
    registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError, SqliteRegistry},
};

use super::support::{Dir, handle, redis, request};
use crate::support::recorder::Recorder;
use crate::support::redis_server::RedisServer;

const SESSIONS: usize = 10_000;

/// Counts the groups, each of which is one transaction.
struct Counted(SqliteRegistry, Arc<AtomicUsize>);

impl Registry for Counted {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.apply(changes).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.0.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.0.claim_orphans(max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.0.release_lease().await
    }
}

/// A handle that has more time than a busy machine needs: what counts here is the number of groups.
fn unhurried(registry: impl Registry) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(Duration::from_secs(60)).registry(registry).build().unwrap();
    (recorder, sessions)
}

async fn drain_10_000(recorder: &Recorder, sessions: &ActiveSessions) {
    for n in 0..SESSIONS {
        sessions.note(format!("session-{n}"));
    }
    assert!(sessions.note("last").recorded().await);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (SESSIONS as u64 + 1, 0), "{report}");
    println!("{SESSIONS} sessions drained in {:.0?}", report.elapsed);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn g06_a_drain_of_10_000_sessions_on_sqlite_is_a_few_dozen_commits() {
    let dir = Dir::new();
    let file = dir.0.join("sessions.db");
    let commits = Arc::new(AtomicUsize::new(0));
    let (recorder, sessions) = unhurried(Counted(SqliteRegistry::open(&file).unwrap(), Arc::clone(&commits)));
    drain_10_000(&recorder, &sessions).await;
    let commits = commits.load(Ordering::SeqCst);
    // Three changes a session, up to a thousand in one, and what comes in while another group is written.
    assert!(commits < 150, "{commits} commits");
    let counter = rusqlite::Connection::open(&file).unwrap();
    let left = |view: &str| {
        counter.query_row(&format!("SELECT count(*) FROM {view}"), [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((left("active_sessions"), left("ending_sessions")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn g06_a_drain_of_10_000_sessions_on_redis_is_a_few_hundred_scripts() {
    let server = RedisServer::start();
    let (recorder, sessions) = unhurried(redis(&server, 10_000).await);
    let before = server.calls("evalsha") + server.calls("eval");
    drain_10_000(&recorder, &sessions).await;
    let scripts = server.calls("evalsha") + server.calls("eval") - before;
    // Three changes a session, 256 in one script, and what comes in while another group is written.
    assert!(scripts < 400, "{scripts} scripts");
    let left: Vec<_> =
        server.keys().into_iter().filter(|key| key.contains(":session:") || key.contains(":end:")).collect();
    assert!(left.is_empty(), "{} keys are left", left.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_a_request_in_a_known_session_is_no_command() {
    let server = RedisServer::start();
    let (_, sessions) = handle(redis(&server, 60_000).await).await;
    for n in 0..10 {
        request(&sessions, &format!("s{n}")).await;
    }
    let before = server.calls("evalsha") + server.calls("eval");
    for _ in 0..100 {
        for n in 0..10 {
            request(&sessions, &format!("s{n}")).await;
        }
    }
    assert_eq!(server.calls("evalsha") + server.calls("eval"), before);
    assert_eq!(sessions.drain(EndReason::Shutdown).await.ended, 10);
}
