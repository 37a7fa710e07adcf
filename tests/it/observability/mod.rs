//! What is said: every event and span is in the documentation's table as it is, no id is in a log, nobody forges a line.
#![cfg(unix)] // one of them is about a signal of Unix

mod lifecycle;
mod log;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::Recorder;
use lifecycle::{NAMES, SECRET, live, secret};
use log::{Log, Said};
use tower_session_end::{ActiveSessions, EndReason};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// A row of the tables of events and spans.
struct Row {
    name: String,
    levels: Vec<Level>,
    required: BTreeSet<String>,
    optional: BTreeSet<String>,
}

impl Row {
    /// `| name | levels | fields | ...`
    fn parse(line: &str) -> Option<Self> {
        let cells: Vec<_> = line.strip_prefix("//! | `session-")?.split('|').collect();
        let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let name = format!("session-{}", cells[0].trim().trim_end_matches('`'));
        let levels = words(cells[1]).iter().map(|level| level.parse().unwrap()).collect();
        let (optional, required): (Vec<_>, Vec<_>) =
            words(cells[2]).into_iter().partition(|field| field.ends_with('?'));
        let optional = optional.iter().map(|field| field.trim_end_matches('?').to_owned()).collect();
        Some(Self { name, levels, required: required.into_iter().collect(), optional })
    }

    fn check(&self, said: &Said) {
        let Self { name, levels, required, optional } = self;
        assert!(levels.contains(&said.level), "{name} at {}", said.level);
        assert!(required.is_subset(&said.fields), "{name} lacks some of {required:?}: {:?}", said.fields);
        let allowed: BTreeSet<_> = required.union(optional).cloned().collect();
        assert!(said.fields.is_subset(&allowed), "{name} has more than {allowed:?}: {:?}", said.fields);
    }
}

fn table() -> Vec<Row> {
    include_str!("../../../src/observability/mod.rs").lines().filter_map(Row::parse).collect()
}

/// Runs the life in which everything happens, and returns what was said.
async fn everything() -> Log {
    let log = Log::default();
    let listening = log.listen();
    live().await;
    drop(listening);
    log
}

#[tokio::test(start_paused = true)]
async fn what_is_said_is_what_the_table_says_and_all_of_it() {
    let log = everything().await;
    let table = table();
    let ours: Vec<_> = log.said().into_iter().filter(|said| said.name.starts_with("session-")).collect();
    for said in &ours {
        let row = table.iter().find(|row| row.name == said.name).unwrap_or_else(|| panic!("not documented: {said:?}"));
        row.check(said);
        assert_eq!(said.is_span, ["session-drain", "session-hook"].contains(&&*said.name));
    }
    for row in &table {
        for level in &row.levels {
            assert!(
                ours.iter().any(|said| said.name == row.name && said.level == *level),
                "never: {} {level}",
                row.name
            );
        }
        for field in row.required.iter().chain(&row.optional) {
            let has = |said: &Said| said.name == row.name && said.fields.contains(field);
            assert!(ours.iter().any(has), "never: {field} of {}", row.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_id_is_in_a_log_and_nobody_forges_a_line_of_it() {
    let text = everything().await.text();
    for name in NAMES {
        let id = secret(name);
        assert!(!text.contains(&id[..9]), "more than eight characters of {id}");
        assert!(text.contains(&format!("{}…", &id[..8])), "never heard of {id}");
    }
    assert!(!text.contains(&SECRET[..4]), "a part of some id");
    assert!(text.contains("forged"), "nobody has tried");
    for line in text.lines() {
        let level = line.trim_start().split(' ').next().unwrap_or_default();
        assert!(["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level), "not a line of ours: {line:?}");
        assert!(!line.trim_start().starts_with("WARN forged"), "{line:?}");
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
    }
}

/// Calls the handle back at every birth and every end, and then panics.
#[derive(Clone)]
struct Nuisance {
    sessions: ActiveSessions,
    heard: Arc<AtomicUsize>,
}

impl<S: Subscriber> Layer<S> for Nuisance {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if ["session-start", "session-end", "session-released"].contains(&event.metadata().name()) {
            // Every shard is free, that of the session too.
            let active = self.sessions.snapshot().len();
            self.heard.fetch_add(1, Ordering::SeqCst);
            panic!("a listener with a defect, while {active} are active");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn g01_a_listener_that_calls_back_and_panics_keeps_no_session_from_its_end() {
    let (recorder, sessions) = Recorder::sessions();
    let nuisance = Nuisance { sessions: sessions.clone(), heard: Arc::default() };
    let listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(nuisance.clone()));
    for id in ["a", "b", "c", "d"] {
        assert!(sessions.note(id).is_new());
    }
    assert!(sessions.end("a", EndReason::Reset));
    assert!(sessions.compact("b", "e").ended_old());
    assert!(sessions.forget("c"));
    let report = sessions.drain(EndReason::Shutdown).await;
    drop(listening);
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["a reset", "b compaction", "d shutdown", "e shutdown"]);
    // One panic silences what else there was to say in that step: the birth of `e`.
    assert_eq!(nuisance.heard.load(Ordering::SeqCst), 4 + 2 + 1 + 2);
}

/// So that no event is added without a name, or without its row.
#[test]
fn every_event_of_the_source_has_a_name_that_the_table_has() {
    fn sources(folder: &Path, all: &mut Vec<String>) {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => sources(&path, all),
                Some(extension) if extension == "rs" => all.push(fs::read_to_string(path).unwrap()),
                _ => {}
            }
        }
    }
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    // Those of registries have a table of their own: no life of a handle has them all.
    let of_registries = include_str!("../../../src/observability/mod.rs").lines();
    let of_registries = of_registries.filter_map(|line| line.strip_prefix("//! | *`")?.split('`').next());
    let names: Vec<_> = table().into_iter().map(|row| row.name).chain(of_registries.map(str::to_owned)).collect();
    let mut found = 0;
    for source in &all {
        let code: Vec<_> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for call in code.join("\n").split("tracing::").skip(1) {
            let Some((word, rest)) = call.split_once("!(") else { continue };
            let first = match word {
                "trace" | "debug" | "info" | "warn" | "error" | "event" => rest.trim_start().strip_prefix("name: \""),
                "trace_span" | "debug_span" | "info_span" | "warn_span" | "error_span" | "span" => {
                    rest.strip_prefix('"')
                }
                _ => continue,
            };
            if rest.starts_with("$($event)+") {
                continue; // `say_how!` itself
            }
            let name = first.unwrap_or_else(|| panic!("no name: {}", &call[..60.min(call.len())]));
            let name = name.split('"').next().unwrap_or_default();
            assert!(names.iter().any(|known| known == name), "not in the table: {name}");
            found += 1;
        }
    }
    assert!(found >= 20, "only {found} events found");
}
