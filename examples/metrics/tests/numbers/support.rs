//! An exporter on its own port.

use std::{net::SocketAddr, time::Duration};

use metrics_example::{
    exporter::{Scraped, recorder},
    scrape::Scrape,
};
use metrics_exporter_prometheus::PrometheusRecorder;
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder};

pub(crate) struct Exporter {
    recorder: PrometheusRecorder,
    scraped: Scraped,
}

impl Exporter {
    pub(crate) async fn serve() -> Self {
        let recorder = recorder().unwrap();
        let scraped = Scraped::serve(recorder.handle()).await.unwrap();
        Self { recorder, scraped }
    }

    /// A handle whose metrics go to this exporter.
    pub(crate) fn build(&self, builder: ActiveSessionsBuilder) -> ActiveSessions {
        metrics::with_local_recorder(&self.recorder, || builder.build().unwrap())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.scraped.address()
    }

    /// Scrapes the exporter.
    pub(crate) async fn scrape(&self) -> Scrape {
        Scrape::parse(&self.scraped.fetch().await.unwrap()).unwrap()
    }

    /// Scrapes until a sample has this value, with a limit.
    pub(crate) async fn until(&self, sample: &str, value: f64) -> Scrape {
        for _ in 0..4000 {
            let scrape = self.scrape().await;
            if scrape.value(sample) == value {
                return scrape;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{sample} did not become {value}: {:?}", self.scrape().await.samples);
    }
}

pub(crate) fn releases(cause: &str) -> String {
    format!("session_releases_total{{cause=\"{cause}\"}}")
}

pub(crate) fn ends(reason: &str) -> String {
    format!("session_ends_total{{reason=\"{reason}\"}}")
}
