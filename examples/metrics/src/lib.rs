//! Session metrics in a Prometheus exporter, for `main.rs` and the tests.
//!
//! Install the recorder before you build the handle:
//!
//! ```
//! use metrics_exporter_prometheus::PrometheusBuilder;
//! use tower_session_end::ActiveSessions;
//!
//! let recorder = PrometheusBuilder::new().build_recorder();
//! let exporter = recorder.handle();
//! metrics::set_global_recorder(recorder)?;
//!
//! let sessions = ActiveSessions::builder().build()?;
//! sessions.note("a");
//! assert!(exporter.render().contains("session_active 1"));
//! # Ok::<(), tower_session_end::BoxError>(())
//! ```

pub mod exporter;
pub mod scrape;
