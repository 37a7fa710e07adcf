//! A real Prometheus scrapes the exporter, takes the alert rules of the operations page, and answers every query of the dashboard.

use std::{env, error::Error, fs, net::TcpListener, path::Path, time::Duration};

use serde_json::Value;
use tokio::process::{Child, Command};
use tower_session_end::{ActiveSessions, BoxError, EndReason};

use crate::{
    operations::{alert_rules, queries_of_the_alerts, queries_of_the_dashboard},
    store::{Fault, Store},
    support::Exporter,
};

pub(crate) struct Prometheus {
    base: String,
    _process: Child,
}

impl Prometheus {
    /// The exporters are its instances `gateway-1`, `gateway-2` and so on.
    pub(crate) fn start(dir: &Path, exporters: &[Exporter], interval: &str) -> Self {
        fs::write(dir.join("rules.yml"), alert_rules()).unwrap();
        let targets = exporters.iter().zip(1..).map(|(exporter, number)| {
            format!("{{ targets: ['{}'], labels: {{ instance: gateway-{number} }} }}", exporter.address())
        });
        let config = format!(
            "global: {{ scrape_interval: {interval}, evaluation_interval: {interval} }}\nrule_files: [rules.yml]\n\
             scrape_configs: [{{ job_name: gateway, static_configs: [{}] }}]\n",
            targets.collect::<Vec<_>>().join(", ")
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .args([format!("--web.listen-address={address}"), "--log.level=error".to_owned()])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { base: format!("http://{address}/api/v1"), _process: process }
    }

    async fn get(&self, path: &str) -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_str(&reqwest::get(format!("{}{path}", self.base)).await?.text().await?)?)
    }

    /// The series of each second from `began` on.
    pub(crate) async fn range(&self, query: &str, began: f64, seconds: u32) -> Value {
        let end = began + f64::from(seconds);
        let path = format!("/query_range?query={}&start={began}&end={end}&step=1", encoded(query));
        self.get(&path).await.unwrap()
    }

    /// Asks until there is a series, with a limit.
    async fn has_series(&self, query: &str) {
        let path = format!("/query?query={}", encoded(query));
        let mut answer = Err("not asked".into());
        for _ in 0..300 {
            answer = self.get(&path).await;
            if answer
                .as_ref()
                .is_ok_and(|answer| answer["data"]["result"].as_array().is_some_and(|all| !all.is_empty()))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{query}: {answer:?}");
    }
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What Grafana puts in the place of its variables.
pub(crate) fn as_grafana_asks(query: &str) -> String {
    query.replace("$job", ".*").replace("$__rate_interval", "30s").replace("$__range", "1h")
}

#[tokio::test]
async fn prometheus_answers_every_query_and_takes_every_rule() {
    if Command::new("prometheus").arg("--version").output().await.is_err() {
        assert!(env::var_os("CI").is_none(), "prometheus is missing");
        return;
    }
    let (exporter, store, holder) = (Exporter::serve().await, Store::default(), Store::default().holder());
    let degraded = exporter.build(ActiveSessions::builder().registry(holder.clone()));
    holder.set(Fault::Down);
    assert!(!degraded.note("noted-in-an-outage").recorded().await);
    let builder = ActiveSessions::builder()
        .registry(store.holder())
        .on_session_start(async |_| {})
        .on_session_end(async |_| Err::<(), BoxError>("no".into()));
    let sessions = exporter.build(builder);
    let dir = env::temp_dir().join(format!("prometheus-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let prometheus = Prometheus::start(&dir, std::slice::from_ref(&exporter), "200ms");
    prometheus.has_series("session_active").await;
    // From here on, so that it sees the counters grow.
    for number in 0..10 {
        sessions.note(format!("session-{number}"));
    }
    assert_eq!(sessions.drain(EndReason::Shutdown).await.failed, 10);
    let hangs = ActiveSessions::builder().drain_timeout(Duration::from_millis(100));
    let hung = exporter.build(hangs.on_session_end(async |_| std::future::pending::<()>().await));
    hung.note("hangs");
    assert_eq!(hung.drain(EndReason::Shutdown).await.unfinished.len(), 1);

    for query in queries_of_the_dashboard() {
        prometheus.has_series(&as_grafana_asks(&query)).await;
    }
    for query in queries_of_the_alerts() {
        let (values, least) = query.rsplit_once(" > ").unwrap_or_else(|| panic!("{query}: no limit"));
        // There were neither dead letters nor more than three outages.
        let is_above = !values.contains("dead_letters") && least == "0";
        prometheus.has_series(if is_above { &query } else { values }).await;
    }
    let rules = prometheus.get("/rules").await.unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), queries_of_the_alerts().len());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    drop(prometheus);
    fs::remove_dir_all(dir).unwrap();
}
