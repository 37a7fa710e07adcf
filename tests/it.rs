//! One handle in one process, real sockets included; and the registry's part of it, over a registry in memory.
//! `tests/registry.rs` has the real registries, `tests/stress.rs` the long and random runs.

mod support;

mod it {
    #[cfg(feature = "axum")]
    mod accept_during_shutdown;
    mod activity;
    mod adopt;
    mod busy_streams;
    mod callbacks;
    mod children;
    #[cfg(feature = "axum")]
    mod close_connections;
    mod closing;
    mod connection_drain;
    #[cfg(feature = "cookie")]
    mod cookie;
    #[cfg(feature = "cookie")]
    mod cookie_values;
    mod doubt;
    mod drain;
    mod drain_progress;
    mod echoes;
    mod expiry_and_cap;
    #[cfg(feature = "axum")]
    mod extractors;
    mod extreme_times;
    mod forced_shutdown;
    mod guard_shutdown;
    mod guards;
    #[cfg(feature = "axum")]
    mod handover;
    mod header;
    mod header_scan;
    mod hook_errors;
    mod hooks;
    mod hooks_idle;
    #[cfg(feature = "axum")]
    mod hostile_clients;
    mod invalid_ids;
    mod keep_if;
    mod late_responses;
    mod lifetime;
    mod mcp;
    #[cfg(feature = "axum")]
    mod nested_layers;
    #[cfg(unix)]
    mod observability;
    mod on_new_id;
    mod package_links;
    mod protocol_panics;
    mod races;
    mod registry;
    mod rooms;
    mod runtimes;
    mod settle;
    mod shutdown;
    mod signal_failures;
    #[cfg(feature = "axum")]
    mod stream_kinds;
    mod streams;
    mod tombstones;
    mod tracker;
    #[cfg(feature = "axum")]
    mod transparency;
    #[cfg(feature = "axum")]
    mod transparency_wire;
    #[cfg(feature = "axum")]
    mod updates;
    mod warnings;
    mod wire_format;
    mod work;
}
