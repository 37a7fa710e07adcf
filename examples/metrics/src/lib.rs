//! What a Prometheus exporter serves about sessions: what `main.rs` shows and the tests try.
//!
//! Install the recorder first, then build the handle: that is all.
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
