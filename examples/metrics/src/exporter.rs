//! The exporter, and the listener that serves `/metrics`.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::{net::TcpListener, task::JoinHandle};
use tower_session_end::BoxError;

/// Buckets from the time of a hook that writes one row to the default time of a drain.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];

/// A recorder that keeps durations in buckets.
///
/// # Errors
///
/// Returns an error only if there are no buckets.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    Ok(PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS)?.build_recorder())
}

/// Serves `/metrics` on a separate port until this is dropped. The shutdown closes the gateway's own listener, and the
/// last values have to be scraped after that.
#[derive(Debug)]
pub struct Scraped {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Scraped {
    /// Opens the port.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn serve(exporter: PrometheusHandle) -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let app = Router::new().route("/metrics", get(async move || exporter.render()));
        let serving = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(Self { address, serving })
    }

    /// Where `/metrics` is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    ///
    /// If the listener does not answer.
    pub async fn fetch(&self) -> Result<String, BoxError> {
        let response = reqwest::get(format!("http://{}/metrics", self.address)).await?;
        Ok(response.error_for_status()?.text().await?)
    }
}

impl Drop for Scraped {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
