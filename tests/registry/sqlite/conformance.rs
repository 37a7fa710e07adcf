//! The conformance kit.

use tower_session_end::registry::conformance::check;

use super::support::Dir;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_every_promise_of_the_trait() {
    check(&Dir::new()).await;
}

#[tokio::test]
async fn keeps_them_on_one_thread_too() {
    check(&Dir::new()).await;
}
