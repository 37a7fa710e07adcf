//! The dashboard and the alert rules of the operations page ask for what the exporter serves.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tower_session_end::{ActiveSessions, BoxError, EndReason};

use crate::{store::Store, support::Exporter};

pub(crate) const DASHBOARD: &str = include_str!("../../../../src/guide/dashboard.json");
const PAGE: &str = include_str!("../../../../src/guide/operations.md");

/// Each word of a query.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

/// The metrics of a query.
fn metrics(query: &str) -> impl Iterator<Item = &str> {
    words(query).filter(|word| word.starts_with("session_"))
}

/// The labels by which a query groups, but for those that Prometheus adds to each sample.
fn groups(query: &str) -> BTreeSet<&str> {
    let lists = query.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
    lists.flat_map(words).filter(|word| !["", "job", "instance"].contains(word)).collect()
}

pub(crate) fn queries_of_the_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn queries_of_the_alerts() -> Vec<String> {
    PAGE.lines().filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())).collect()
}

/// The block of the page that begins with the groups.
pub(crate) fn alert_rules() -> &'static str {
    let mut blocks = PAGE.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|block| block.starts_with("groups:")).unwrap()
}

/// The names of the samples, and the labels of each.
async fn served() -> BTreeMap<String, BTreeSet<String>> {
    let exporter = Exporter::serve().await;
    let builder = ActiveSessions::builder()
        .registry(Store::default().holder())
        .on_session_start(async |_| {})
        .on_session_end_batch(10, async |_| Err::<(), BoxError>("no".into()));
    let sessions = exporter.build(builder);
    for id in ["ended", "forgotten"] {
        sessions.note(id);
    }
    sessions.forget("forgotten");
    assert_eq!(sessions.drain(EndReason::Shutdown).await.failed, 1);
    let mut served = BTreeMap::<_, BTreeSet<_>>::new();
    for sample in exporter.scrape().await.samples.into_keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample.as_str(), ""));
        let labels = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        served.entry(name.to_owned()).or_default().extend(labels);
    }
    served
}

#[tokio::test]
async fn each_query_of_the_dashboard_and_the_alerts_asks_for_served_metrics_by_their_labels() {
    let (served, dashboard, alerts) = (served().await, queries_of_the_dashboard(), queries_of_the_alerts());
    assert!(dashboard.len() >= 12 && alerts.len() == 5, "{} {}", dashboard.len(), alerts.len());
    for query in dashboard.iter().chain(&alerts) {
        let asked: Vec<_> = metrics(query).collect();
        assert_eq!(asked.len(), 1, "{query}");
        let labels = served.get(asked[0]).unwrap_or_else(|| panic!("{query}: not served"));
        for label in groups(query) {
            assert!(labels.contains(label), "{query}: {label} is not one of {labels:?}");
        }
    }
}

#[tokio::test]
async fn the_dashboard_shows_every_metric() {
    let dashboard = queries_of_the_dashboard();
    let shown: BTreeSet<_> = dashboard.iter().flat_map(|query| metrics(query)).map(family).collect();
    let served = served().await;
    assert_eq!(shown, served.keys().map(|name| family(name)).collect());
}

/// The metric to which a sample of a histogram belongs.
fn family(sample: &str) -> &str {
    let parts = ["_bucket", "_sum", "_count"];
    parts.iter().find_map(|part| sample.strip_suffix(part)).unwrap_or(sample)
}

#[test]
fn words_of_a_query_are_found() {
    let query = "sum by (le, kind) (rate(session_a_bucket{job=~\"$job\"}[5m])) / session_b";
    assert_eq!(metrics(query).collect::<Vec<_>>(), ["session_a_bucket", "session_b"]);
    assert_eq!(groups(query), ["kind", "le"].into());
}
