//! A host that continues with its ids after a restart: rmcp restores them from a store, and no response head shows it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use mcp_gateway::Mount;
use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use tower_session_end::McpProtocol;

use crate::support::{CALL, PING, Setup};

/// The store of sessions, which outlives a host.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<HashMap<String, SessionState>>>);

#[async_trait::async_trait]
impl SessionStore for Store {
    async fn load(&self, id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        Ok(self.0.lock().unwrap().get(id).cloned())
    }

    async fn store(&self, id: &str, state: &SessionState) -> Result<(), SessionStoreError> {
        self.0.lock().unwrap().insert(id.to_owned(), state.clone());
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        self.0.lock().unwrap().remove(id);
        Ok(())
    }
}

/// A host with this store.
fn setup(mount: Mount, store: &Store, adopt: bool) -> Setup {
    let mut setup = Setup::new(mount);
    setup.config.session_store = Some(Arc::new(store.clone()));
    setup.protocol = McpProtocol::new().adopt(adopt);
    setup
}

#[tokio::test]
async fn a_session_from_before_a_restart_is_a_new_generation() {
    for mount in Mount::ALL {
        let store = Store::default();
        let before = setup(mount, &store, true).plain().await;
        let (posts, gets) = (before.open().await, before.open().await);
        let recorder = before.recorder.clone();
        assert_eq!(before.stop().await.len(), 2);
        let first = recorder.ends();

        let after = setup(mount, &store, true).plain().await;
        assert!(after.sessions.is_empty());
        let answer = after.post(&posts, CALL).await;
        assert_eq!((answer.status, answer.id), (200, None), "{}", answer.body);
        let stream = after.get(&gets).await;
        assert_eq!(stream.status(), 200);
        assert!(after.sessions.contains(&posts) && after.sessions.contains(&gets));
        // Each is noted once for any number of requests, and an id that the host does not know is not noted.
        assert_eq!(after.post(&posts, PING).await.status, 200);
        assert_eq!(after.post("unknown", PING).await.status, 404);
        assert_eq!(after.delete("unknown").await.status, 202);
        assert_eq!(after.sessions.len(), 2);
        assert_eq!(after.delete(&posts).await.status, 202);
        let recorder = after.recorder.clone();
        let mut expected = [format!("{posts} deleted"), format!("{gets} shutdown")];
        expected.sort();
        assert_eq!(after.stop().await, expected);
        for again in recorder.ends() {
            assert!(first.iter().all(|before| before.generation != again.generation), "{again:?}");
        }
    }
}

#[tokio::test]
async fn a_delete_of_a_session_from_before_a_restart_makes_no_event() {
    for mount in Mount::ALL {
        let store = Store::default();
        let before = setup(mount, &store, true).plain().await;
        let id = before.open().await;
        assert_eq!(before.stop().await.len(), 1);
        let after = setup(mount, &store, true).plain().await;
        assert_eq!(after.delete(&id).await.status, 202);
        assert_eq!(after.post(&id, PING).await.status, 404);
        assert_eq!(after.stop().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn without_adoption_only_the_notifying_manager_notes_restored_sessions() {
    for mount in Mount::ALL {
        let store = Store::default();
        let before = setup(mount, &store, false).plain().await;
        let id = before.open().await;
        assert_eq!(before.stop().await, [format!("{id} shutdown")]);

        let silent = setup(mount, &store, false).plain().await;
        assert_eq!(silent.post(&id, CALL).await.status, 200);
        assert!(silent.sessions.is_empty());
        assert_eq!(silent.stop().await, Vec::<String>::new());

        let telling = setup(mount, &store, false).telling().await;
        assert_eq!(telling.post(&id, CALL).await.status, 200);
        assert!(telling.sessions.contains(&id));
        assert_eq!(telling.stop().await, [format!("{id} shutdown")]);
    }
}

#[tokio::test]
async fn a_session_restored_right_after_its_idle_end_is_a_new_generation() {
    for mount in Mount::ALL {
        let store = Store::default();
        let mut setup = setup(mount, &store, true);
        setup.keep_alive = Duration::from_millis(700);
        let host = setup.telling().await;
        let id = host.open().await;
        host.lost(&id).await;
        host.ends(1).await;
        // The response head does not revive a tombstoned id; the manager's note does.
        assert_eq!(host.post(&id, PING).await.status, 200);
        host.ends(2).await;
        assert_eq!(host.stop().await, [format!("{id} idle"), format!("{id} idle")]);
    }
}
