//! A handle with a registry, and births through its layer.

use std::{convert::Infallible, future::ready, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions,
    registry::{RedisRegistry, Registry},
};

use crate::support::{recorder::Recorder, redis_server::RedisServer};

/// What a birth waits for at most, and as much again for a busy machine.
pub(crate) const ABOUT_250_MS: Duration = Duration::from_millis(500);

/// A handle that records an id that comes with a request at once: it does so after 2 s.
pub(crate) async fn handle(registry: impl Registry) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = recorder.builder().registry(registry).build().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    (recorder, sessions)
}

/// A registry on this server with a lease of so many milliseconds.
pub(crate) async fn redis(server: &RedisServer, lease: u64) -> RedisRegistry {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_connection_manager().await.unwrap();
    RedisRegistry::builder(connection).lease(Duration::from_millis(lease)).connect().await.unwrap()
}

/// A response with this id in its head; says how long it took.
pub(crate) async fn request(sessions: &ActiveSessions, id: &str) -> Duration {
    let header = id.to_owned();
    let host = service_fn(move |_: Request<()>| {
        let response = Response::builder().header("x-session-id", &header).body(Empty::<Bytes>::new()).unwrap();
        ready(Ok::<_, Infallible>(response))
    });
    let request = Request::post("/").header("x-session-id", id).body(()).unwrap();
    let begun = Instant::now();
    let response = sessions.layer().layer(host).oneshot(request).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-session-id"]), (200, &id.parse().unwrap()));
    begun.elapsed()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A directory that is removed on drop.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        use std::hash::BuildHasher;
        let n = std::collections::hash_map::RandomState::new().hash_one(0);
        let path = std::env::temp_dir().join(format!("tower-session-end-outages-{n:016x}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
