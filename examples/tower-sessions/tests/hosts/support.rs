//! A running host, and a directory for its store.

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
use tower_sessions_example::{cookie_format::CookieFormat, event_log::EventLog, store::Store, visitor::Visitor};

/// Longer than any step of a test takes on a busy machine; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Makes two tests from each of these functions: `memory::name` and `sqlite::name`.
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

/// A store, and the directory of its file, which is removed on drop.
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
        fs::create_dir_all(&dir).expect("the directory must be writable");
        Self { store: Store::sqlite(&dir.join("sessions.db")).await.unwrap(), dir: Some(dir) }
    }

    /// The file of a SQLite store.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.as_ref().expect("the store must be a file").join("sessions.db")
    }

    /// Removes a session from the store, as its expiry does.
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

pub(crate) fn every_format() -> [CookieFormat; 3] {
    [CookieFormat::Plain, CookieFormat::Signed(Key::generate()), CookieFormat::Private(Key::generate())]
}

/// A running host.
pub(crate) struct Host {
    pub(crate) sessions: ActiveSessions,
    pub(crate) event_log: EventLog,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<EndReason>,
    finished: JoinHandle<ShutdownReport>,
}

impl Host {
    pub(crate) async fn start(app: impl FnOnce(&ActiveSessions) -> Router) -> Self {
        let event_log = EventLog::default();
        let sessions = ActiveSessions::builder()
            .drain_timeout(PATIENCE)
            .connection_drain_timeout(PATIENCE)
            .hook(event_log.clone())
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = sessions.shutdown_on(async { stopped.await.unwrap_or(EndReason::Unknown) });
        let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(shutdown);
        let finish = sessions.finish(server);
        let finished = tokio::spawn(async move { finish.await.into_result().unwrap() });
        Self { sessions, event_log, address, stop, finished }
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

    /// Shuts it down, and asserts that every session had exactly one end.
    pub(crate) async fn stop(self) -> EventLog {
        self.stop.send(EndReason::Shutdown).unwrap();
        let report = timeout(PATIENCE, self.finished).await.expect("the host must shut down in time").unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(self.sessions.is_empty());
        self.event_log.check().unwrap();
        self.event_log
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

/// As [`post`], and asserts that the status is 200.
pub(crate) async fn do_post(visitor: &Visitor, path: &str) {
    let (status, body) = post(visitor, path).await;
    assert_eq!(status, 200, "{path}: {body}");
}

/// The value of the visitor's cookie.
pub(crate) fn cookie(visitor: &Visitor) -> String {
    visitor.cookie().unwrap().expect("the visitor must have a cookie")
}
