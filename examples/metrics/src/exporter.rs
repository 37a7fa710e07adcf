//! The exporter, and the listener on which it is scraped.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::{net::TcpListener, task::JoinHandle};
use tower_session_end::BoxError;

/// From a hook that writes one row to the default time of a drain.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];

/// A recorder that keeps durations in buckets.
///
/// # Errors
///
/// None, as long as there are buckets.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    Ok(PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS)?.build_recorder())
}

/// Serves `/metrics` on a port of its own, which is open until this is dropped: a stop of the gateway closes the
/// gateway's listener, and its last numbers are still to be fetched.
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
    /// If there is none.
    pub async fn serve(exporter: PrometheusHandle) -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let app = Router::new().route("/metrics", get(async move || exporter.render()));
        let serving = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(Self { address, serving })
    }

    /// What a scraper gets.
    ///
    /// # Errors
    ///
    /// If it does not answer.
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
