//! Random sequences, real threads, storms over real sockets and the soak: short here, long by their environment variables (see
//! `.ci/long`).

mod support;

/// Held by each run: those with a clock of their own would disturb each other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A case that failed is kept here, and tried first from then on.
fn failures(model: &str) -> Option<Box<dyn proptest::test_runner::FailurePersistence>> {
    let file = format!("{}/tests/stress/{model}.proptest-regressions", env!("CARGO_MANIFEST_DIR"));
    Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct(file.leak())))
}

mod stress {
    mod model;
    mod replicas;
    mod replicas_model;
    #[cfg(feature = "axum")]
    mod soak;
    #[cfg(feature = "axum")]
    mod sockets;
    #[cfg(feature = "axum")]
    mod streams;
}
