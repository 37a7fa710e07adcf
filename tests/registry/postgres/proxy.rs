//! Through `pgbouncer`, which gives each transaction another connection to the server.

use super::{
    conformance,
    support::{PgBouncer, pool, shared},
};

/// With the options that anyone has: no statement is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_g16_the_conformance_kit_through_a_proxy_of_transactions() {
    let Some(server) = shared() else { return };
    let Some(proxy) = PgBouncer::start(server, 3) else { return };
    conformance::check(server, pool(&proxy.url())).await;
}
