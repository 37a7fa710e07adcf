//! Random sequences, real threads, storms over real sockets and the soak: short here, long by their environment variables (see
//! `.ci/long`).

mod support;

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
