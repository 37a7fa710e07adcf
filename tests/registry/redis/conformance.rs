//! The conformance kit, over each kind of connection.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{aio::ConnectionLike, cluster::ClusterClient};
use tower_session_end::{
    GenerationId,
    registry::{
        RedisRegistry, Registry,
        conformance::{self, Store},
    },
};

use super::support::{RedisServer, lazy_manager};

/// Longer than a busy machine stands still.
const LEASE: Duration = Duration::from_millis(1500);

/// Holders over clones of one connection.
struct Holders<'a, C> {
    server: &'a RedisServer,
    connection: C,
    prefix: &'static str,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Store for Holders<'_, C> {
    type Holder = RedisRegistry;

    async fn holder(&self) -> RedisRegistry {
        let builder = RedisRegistry::builder(self.connection.clone()).prefix(self.prefix);
        builder.lease(LEASE).command_timeout(LEASE * 9 / 10).connect().await.unwrap()
    }

    async fn kill(&self, holder: RedisRegistry) {
        drop(holder);
        tokio::time::sleep(LEASE * 3 / 2).await;
        // On a machine that stood still for a moment no holder was heard, and leases expire a little later.
        let grace: f64 = self.server.ask(&format!("GET {{{}}}:grace_until", self.prefix)).parse().unwrap_or_default();
        let left = grace - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1000.0;
        tokio::time::sleep(Duration::from_secs_f64(left.max(0.0) / 1000.0)).await;
    }

    async fn redeliver(&self, holder: &RedisRegistry, generation: GenerationId) -> bool {
        assert!(holder.redeliver(generation).await.unwrap());
        true
    }
}

/// The kit, beside a holder that beats all the time: by that the death of one is told from an outage of the server.
async fn check<C: ConnectionLike + Clone + Send + Sync + 'static>(
    server: &RedisServer,
    connection: C,
    prefix: &'static str,
) {
    let holders = Holders { server, connection, prefix };
    let witness = holders.holder().await;
    let beats = async {
        loop {
            tokio::time::sleep(witness.heartbeat_interval()).await;
            witness.heartbeat().await.unwrap();
        }
    };
    tokio::select! {
        () = conformance::check(&holders) => {}
        () = beats => {}
    }
    witness.release_lease().await.unwrap();
    let mut keys = server.keys();
    for key in &keys {
        assert_eq!(server.ask(&format!("TTL {key}")), "-1", "{key} can be evicted");
    }
    keys.retain(|key| !key.ends_with(":grace_until"));
    assert_eq!(keys, [format!("{{{prefix}}}:fenced"), format!("{{{prefix}}}:incarnation")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit_over_a_connection_manager() {
    let server = RedisServer::start();
    check(&server, lazy_manager(&server.url()), "kit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit_on_a_cluster() {
    let server = RedisServer::cluster();
    let connection = ClusterClient::new([server.url()]).unwrap().get_async_connection().await.unwrap();
    check(&server, connection, "another-kit").await;
}
