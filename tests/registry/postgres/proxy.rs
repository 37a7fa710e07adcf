//! Through `pgbouncer`, which gives each transaction another connection to the server.

use std::{str::FromStr, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tower_session_end::registry::{PostgresRegistry, Registry, RegistryError};

use super::{
    conformance,
    support::{LONG, PgBouncer, hold, new_schema, record, shared},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit_through_a_proxy_of_transactions() {
    let Some(server) = shared() else { return };
    let Some(proxy) = PgBouncer::start(server, 3) else { return };
    let options = PgConnectOptions::from_str(&proxy.url()).unwrap().statement_cache_capacity(0);
    let pool =
        PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options);
    conformance::check(server, pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_statements_through_a_proxy_that_does_not_know_them_are_a_clear_error() {
    let Some(server) = shared() else { return };
    let Some(proxy) = PgBouncer::start(server, 2) else { return };
    let schema = new_schema();
    for _ in 0..10 {
        // Each process names its statements anew.
        let pool = PgPoolOptions::new().max_connections(3).connect_lazy(&proxy.url()).unwrap();
        let answer = match PostgresRegistry::builder(pool).schema(&schema).lease(LONG).connect().await {
            Ok(holder) => holder.apply(vec![hold(&record("a"))]).await.map(drop),
            Err(error) => Err(error),
        };
        match answer {
            // A newer proxy knows them.
            Ok(()) => {}
            Err(RegistryError::Invalid(error)) => {
                assert!(error.to_string().contains("statement_cache_capacity(0)"), "{error}");
                return;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}
