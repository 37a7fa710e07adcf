//! The recovery of what a dead process held, while new sessions start.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::Request;
use tokio::time::sleep;
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions, Session, SessionEnd,
    registry::{Applied, Change, HoldMode, Record, Registry},
};

use crate::{
    Host, exchange, id,
    measure::{Fallible, Spread},
    until_written,
};

/// The sessions that one call of the dead process records.
const PER_CALL: usize = 1_000;

/// The pause between two starts.
const PAUSE: Duration = Duration::from_millis(2);

/// The heading of the table.
pub(crate) const HEADING: &str = "| registry | sessions | bare statements, s | ended after, s | removed after, s | of the bare ones | starts meanwhile | wait p50, ms | p99, ms | longest, ms |";

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) sessions: usize,
    /// How long the bare statements took.
    pub(crate) bare: Duration,
}

impl Row {
    /// `dead` has recorded these sessions when it exits, and `survivor` ends them.
    pub(crate) async fn measure(self, dead: impl Registry, survivor: impl Registry) -> Fallible<()> {
        let Self { kind, sessions, bare } = self;
        record_and_die(dead, sessions).await?;
        let active = ActiveSessions::builder()
            .max_sessions(usize::MAX)
            .on_session_end(async |_: SessionEnd| {})
            .registry(survivor)
            .recovery_timeout(Duration::from_secs(600))
            .build()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let starts = tokio::spawn(starts(active.clone(), Arc::clone(&is_over)));
        let begun = Instant::now();
        let report = active.recover().await;
        let ended = begun.elapsed();
        until_written(&active).await?;
        let removed = begun.elapsed();
        is_over.store(true, Ordering::SeqCst);
        let waits = Spread::of(starts.await?);
        active.forget_all();
        if report.ended != sessions as u64 {
            return Err(format!("of {sessions} sessions: {report}").into());
        }
        println!(
            "| {kind} | {sessions} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {:.3} | {:.3} | {:.3} |",
            bare.as_secs_f64(),
            ended.as_secs_f64(),
            removed.as_secs_f64(),
            removed.as_secs_f64() / bare.as_secs_f64(),
            waits.len(),
            waits.median(),
            waits.at(0.99),
            waits.at(1.0),
        );
        Ok(())
    }
}

/// A process has recorded these sessions when it exits.
pub(crate) async fn record_and_die(registry: impl Registry, sessions: usize) -> Fallible<()> {
    record_all(&registry, sessions).await?;
    Ok(registry.release_lease().await?)
}

async fn record_all(registry: &impl Registry, sessions: usize) -> Fallible<()> {
    let numbers: Vec<_> = (0..sessions).collect();
    for numbers in numbers.chunks(PER_CALL) {
        let mut changes = Vec::with_capacity(numbers.len());
        for number in numbers {
            let generation = format!("00000000000000000000000000000001-{number}").parse()?;
            let session = Session::try_from(format!("dead-{number:031}"))?;
            let record = Record::new(session, generation, SystemTime::now());
            changes.push(Change::Hold { record, mode: HoldMode::Create });
        }
        let answers = registry.apply(changes).await?;
        if answers.iter().any(|answer| *answer != Applied::Created) {
            return Err("a session was not recorded".into());
        }
    }
    Ok(())
}

/// Starts sessions until `is_over`; returns the wait of each, in milliseconds.
async fn starts(sessions: ActiveSessions, is_over: Arc<AtomicBool>) -> Vec<f64> {
    let mut service = sessions.layer().layer(Host);
    let mut waits = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let before = Instant::now();
        exchange(&mut service, Request::new(Some(id(waits.len())))).await;
        waits.push(before.elapsed().as_secs_f64() * 1e3);
        sleep(PAUSE).await;
    }
    waits
}
