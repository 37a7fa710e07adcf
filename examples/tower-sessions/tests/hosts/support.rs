//! A running host, and a place for its store.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::Router;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tower_session_end::{ActiveSessions, EndReason, ShutdownReport};
use tower_sessions::{SessionStore, cookie::Key, session::Id};
use tower_sessions_example::{journal::Journal, seal::Seal, store::Store, visitor::Visitor};

/// More than any step of a test needs on a busy machine; only what hangs takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Makes two tests of each of these functions: `memory::name` and `sqlite::name`.
macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $name() { super::$name(&$crate::support::Home::memory()).await; })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(&$crate::support::Home::sqlite().await).await; })*
        }
    };
}
pub(crate) use on_both_stores;

/// A store, and the directory of its file, which goes with it.
pub(crate) struct Home {
    pub(crate) store: Store,
    dir: Option<PathBuf>,
}

impl Home {
    pub(crate) fn memory() -> Self {
        Self { store: Store::memory(), dir: None }
    }

    pub(crate) async fn sqlite() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tower-sessions-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).expect("the target directory is writable");
        Self { store: Store::sqlite(&dir.join("sessions.db")).await.unwrap(), dir: Some(dir) }
    }

    /// The file of a SQLite store.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.as_ref().expect("it is a file").join("sessions.db")
    }

    /// The store loses a session, as it does when its time is over.
    pub(crate) async fn lose(&self, id: &str) {
        let id: Id = id.parse().unwrap();
        match &self.store {
            Store::Memory(store) => store.delete(&id).await.unwrap(),
            Store::Sqlite(store) => store.delete(&id).await.unwrap(),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

pub(crate) fn every_seal() -> [Seal; 3] {
    [Seal::Plain, Seal::Signed(Key::generate()), Seal::Private(Key::generate())]
}

/// A host that runs.
pub(crate) struct Host {
    pub(crate) sessions: ActiveSessions,
    pub(crate) journal: Journal,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<EndReason>,
    finished: JoinHandle<ShutdownReport>,
}

impl Host {
    pub(crate) async fn start(app: impl FnOnce(&ActiveSessions) -> Router) -> Self {
        let journal = Journal::default();
        let sessions = ActiveSessions::builder()
            .drain_timeout(PATIENCE)
            .connection_drain_timeout(PATIENCE)
            .hook(journal.clone())
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = sessions.shutdown_on(async { stopped.await.unwrap_or(EndReason::Unknown) });
        let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(shutdown);
        let finish = sessions.finish(server);
        let finished = tokio::spawn(async move { finish.await.into_result().unwrap() });
        Self { sessions, journal, address, stop, finished }
    }

    pub(crate) fn visitor(&self) -> Visitor {
        Visitor::new(self.address).unwrap()
    }

    /// The ids that are active, sorted.
    pub(crate) fn active(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
        ids.sort();
        ids
    }

    /// Stops it, and holds the promise against what is left: no session lacks its end, and none had two.
    pub(crate) async fn stop(self) -> Journal {
        self.stop.send(EndReason::Shutdown).unwrap();
        let report = timeout(PATIENCE, self.finished).await.expect("a stop in time").unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(self.sessions.is_empty());
        self.journal.check().unwrap();
        self.journal
    }
}

pub(crate) async fn get(visitor: &Visitor, path: &str) -> (u16, String) {
    let (status, body) = visitor.get(path).await.unwrap();
    (status.as_u16(), body)
}

pub(crate) async fn post(visitor: &Visitor, path: &str) -> (u16, String) {
    let (status, body) = visitor.post(path).await.unwrap();
    (status.as_u16(), body)
}

/// As [`post`], for what goes well.
pub(crate) async fn do_post(visitor: &Visitor, path: &str) {
    let (status, body) = post(visitor, path).await;
    assert_eq!(status, 200, "{path}: {body}");
}

/// What the visitor's cookie holds.
pub(crate) fn cookie(visitor: &Visitor) -> String {
    visitor.cookie().unwrap().expect("a cookie")
}
