//! The conformance kit.

use std::time::Duration;

use sqlx::PgPool;
use tower_session_end::{
    GenerationId,
    registry::{
        PostgresRegistry, Registry,
        conformance::{self, Store},
    },
};

use super::support::{PostgresServer, new_schema, pool, shared};

/// Longer than a busy machine stands still.
const LEASE: Duration = Duration::from_secs(2);

/// Holders over clones of one pool.
struct Holders<'a> {
    server: &'a PostgresServer,
    pool: PgPool,
    schema: &'a str,
    /// Its lease tells the death of another holder from an outage of the server.
    witness: &'a PostgresRegistry,
}

/// Shows the leases if the kit has failed.
impl Drop for Holders<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
            let holders = format!(
                "SELECT h.*, expires_at - {now} AS remaining, grace_until - {now} AS grace
                 FROM \"{schema}\".holders h, \"{schema}\".store ORDER BY number",
                schema = self.schema
            );
            eprintln!("holders:\n{}", self.server.try_ask(&holders).unwrap_or_else(|error| error));
        }
    }
}

async fn connect(pool: &PgPool, schema: &str) -> PostgresRegistry {
    PostgresRegistry::builder(pool.clone()).schema(schema).lease(LEASE).connect().await.unwrap()
}

impl Holders<'_> {
    async fn wait_for(&self, condition: &str) {
        while {
            self.witness.heartbeat().await.unwrap();
            self.server.ask(condition) != "t"
        } {
            tokio::time::sleep(LEASE / 10).await;
        }
    }
}

impl Store for Holders<'_> {
    type Holder = PostgresRegistry;

    async fn holder(&self) -> PostgresRegistry {
        self.witness.heartbeat().await.unwrap();
        let holder = connect(&self.pool, self.schema).await;
        // On a machine that stood still, the new holder gives the others one more lease.
        let is_over = format!(
            "SELECT grace_until < (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM \"{}\".store",
            self.schema
        );
        self.wait_for(&is_over).await;
        holder
    }

    async fn kill(&self, holder: PostgresRegistry) {
        let name = format!("{}:0", holder.instance());
        drop(holder);
        tokio::time::sleep(LEASE).await;
        let is_over = format!(
            "SELECT NOT EXISTS (SELECT 1 FROM \"{schema}\".holders, \"{schema}\".store
                WHERE name = '{name}' AND adopted_by IS NULL
                    AND (extract(epoch FROM clock_timestamp()) * 1000)::bigint <= greatest(expires_at, grace_until))",
            schema = self.schema
        );
        self.wait_for(&is_over).await;
    }

    async fn redeliver(&self, holder: &PostgresRegistry, generation: GenerationId) -> bool {
        assert!(holder.redeliver(generation).await.unwrap());
        true
    }
}

/// The kit, beside a holder with heartbeats.
pub(super) async fn check(server: &PostgresServer, pool: PgPool) {
    let schema = new_schema();
    let witness = connect(&pool, &schema).await;
    let holders = Holders { server, pool, schema: &schema, witness: &witness };
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
    let count = |table: &str| server.ask(&format!("SELECT count(*) FROM \"{schema}\".{table}"));
    for table in ["sessions", "holds", "notices", "holders WHERE NOT empty AND NOT released"] {
        assert_eq!(count(table), "0", "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit() {
    let Some(server) = shared() else { return };
    check(server, pool(&server.url())).await;
}
