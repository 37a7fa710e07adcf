//! The exporter serves exactly the metrics in the documentation's table.

use std::collections::{BTreeMap, BTreeSet};

use tower_session_end::{ActiveSessions, BoxError, EndReason};

use crate::{
    store::Store,
    support::{Exporter, ends},
};

/// `| name | kind | labels | what |`
fn table() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = include_str!("../../../../src/observability/mod.rs").lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("//! | `session_")?.split('|').collect();
        let name = format!("session_{}", cells[0].trim().trim_end_matches('`'));
        Some((name, (cells[1].trim().to_owned(), words(cells[2]).into_iter().collect())))
    });
    rows.collect()
}

#[tokio::test]
async fn the_served_metrics_match_the_table() {
    let exporter = Exporter::serve().await;
    let builder = ActiveSessions::builder()
        .registry(Store::default().holder())
        .on_session_start(async |_| {})
        .on_session_end(async |_| {})
        .on_session_end_batch(10, async |_| Err::<(), BoxError>("no".into()));
    let sessions = exporter.build(builder);
    sessions.note("a");
    assert_eq!(sessions.drain(EndReason::Shutdown).await.failed, 1);
    let scrape = exporter.scrape().await;
    let table = table();
    let kinds = table.iter().map(|(name, (kind, _))| (name.clone(), kind.clone())).collect::<BTreeMap<_, _>>();
    assert_eq!(scrape.kinds, kinds);
    for sample in scrape.samples.keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample.as_str(), ""));
        let labels: BTreeSet<_> = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect();
        let of =
            |row: &&String| name == row.as_str() || name.rsplit_once('_').is_some_and(|(base, _)| base == row.as_str());
        let row = table.keys().find(of).unwrap_or_else(|| panic!("{sample} is not in the table"));
        let known: BTreeSet<_> =
            table[row].1.iter().map(String::as_str).chain(name.ends_with("_bucket").then_some("le")).collect();
        assert_eq!(labels, known, "{sample}");
    }
}

#[tokio::test]
async fn a_dropped_handle_removes_its_sessions_from_the_sum() {
    let exporter = Exporter::serve().await;
    let [one, two] = [(); 2].map(|()| exporter.build(ActiveSessions::builder()));
    for id in ["a", "b", "c"] {
        one.note(id);
    }
    two.note("a");
    two.note("a"); // known, so not a start
    let scrape = exporter.scrape().await;
    assert_eq!((scrape.value("session_active"), scrape.value("session_starts_total")), (4.0, 4.0));
    drop(one);
    let scrape = exporter.scrape().await;
    assert_eq!((scrape.value("session_active"), scrape.value("session_starts_total")), (1.0, 4.0));
    assert!(two.end("a", EndReason::Daily));
    assert!(!two.end("a", EndReason::Daily));
    let scrape = exporter.scrape().await;
    assert_eq!((scrape.value("session_active"), scrape.value(&ends("daily"))), (0.0, 1.0));
}

#[tokio::test]
async fn a_handle_that_is_built_before_the_recorder_has_no_metrics() {
    let exporter = Exporter::serve().await;
    let sessions = ActiveSessions::builder().build().unwrap();
    metrics::with_local_recorder(&metrics::NoopRecorder, || sessions.note("a"));
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert!(exporter.scrape().await.samples.is_empty());
}
