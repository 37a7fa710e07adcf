//! The conformance kit, over each kind of connection.

use std::time::Duration;

use redis::{aio::ConnectionLike, Client};
use tower_session_end::registry::{
    RedisRegistry, Registry,
    conformance::{self, Store},
};

use crate::support::{RedisServer, manager};

const LEASE: Duration = Duration::from_millis(800);

/// Holders over clones of one connection.
struct Holders<C> {
    connection: C,
    prefix: &'static str,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Store for Holders<C> {
    type Holder = RedisRegistry;

    async fn holder(&self) -> RedisRegistry {
        let builder = RedisRegistry::builder(self.connection.clone()).prefix(self.prefix);
        builder.lease(LEASE).command_timeout(LEASE / 2).connect().await.unwrap()
    }

    async fn kill(&self, holder: RedisRegistry) {
        drop(holder);
        // The death of one is told from an outage of the server by somebody who lives.
        let witness = self.holder().await;
        for _ in 0..6 {
            tokio::time::sleep(LEASE / 4).await;
            witness.beat().await.unwrap();
        }
        witness.leave().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit_over_a_connection_manager() {
    let server = RedisServer::start();
    conformance::check(&Holders { connection: manager(&server).await, prefix: "kit" }).await;
    assert_eq!(server.keys(), ["{kit}:fenced", "{kit}:inc"]);
}
