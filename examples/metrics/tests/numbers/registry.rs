//! Metrics with a registry: degraded and restored, recovered, shared, handed over, given up.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason};

use crate::{
    store::{Fault, Holder, Store},
    support::{Exporter, ends, releases},
};

fn on(holder: &Holder) -> ActiveSessionsBuilder {
    ActiveSessions::builder().registry(holder.clone())
}

#[tokio::test]
async fn the_gauge_shows_a_registry_that_is_unreachable() {
    let (exporter, store) = (Exporter::serve().await, Store::default());
    let (one, two) = (store.holder(), store.holder());
    let [first, second] = [&one, &two].map(|holder| exporter.build(on(holder)));
    for (sessions, holder) in [(&first, &one), (&second, &two)] {
        holder.set(Fault::Down);
        assert!(!sessions.note("a").recorded().await);
    }
    let scrape = exporter.scrape().await;
    assert_eq!(scrape.value("session_registry_degraded"), 2.0);
    assert_eq!(scrape.value("session_registry_degradations_total"), 2.0);
    one.set(Fault::None);
    let driver = tokio::spawn(first.shutdown_on(pending::<()>()));
    let scrape = exporter.until("session_registry_degraded", 1.0).await;
    assert_eq!(scrape.value("session_registry_degradations_total"), 2.0);
    driver.abort();
    // A dropped handle removes its share of the gauge, even while it is degraded.
    drop(second);
    exporter.until("session_registry_degraded", 0.0).await;
}

#[tokio::test]
async fn recovered_ends_are_counted() {
    let (exporter, store) = (Exporter::serve().await, Store::default());
    let dead = store.holder();
    let sessions = on(&dead).build().unwrap();
    for id in ["a", "b"] {
        assert!(sessions.note(id).recorded().await);
    }
    dead.kill();
    let heir = exporter.build(on(&store.holder()));
    heir.note("c").recorded().await;
    assert_eq!(heir.recover().await.ended, 2);
    let scrape = exporter.scrape().await;
    assert_eq!(scrape.value("session_recovered_total"), 2.0);
    assert_eq!(scrape.value(&ends("lost")), 2.0);
    assert_eq!((scrape.value("session_starts_total"), scrape.value("session_active")), (1.0, 1.0));
    scrape.balances().unwrap();
}

#[tokio::test]
async fn a_dead_letter_is_counted() {
    let (exporter, store, calls) = (Exporter::serve().await, Store::default(), Arc::new(AtomicUsize::new(0)));
    let mut dead_letters = 0;
    for life in 0..40 {
        let (holder, called) = (store.holder(), Arc::clone(&calls));
        let hangs = move |_| {
            called.fetch_add(1, Ordering::SeqCst);
            pending::<()>()
        };
        let sessions = exporter.build(on(&holder).on_session_end(hangs).recovery_timeout(Duration::from_millis(200)));
        let before = calls.load(Ordering::SeqCst);
        let found = if life == 0 {
            assert!(sessions.note("a").recorded().await);
            assert!(sessions.end("a", EndReason::Daily));
            1
        } else {
            let report = sessions.recover().await;
            dead_letters += report.dead_letters;
            report.found
        };
        if dead_letters > 0 {
            break;
        }
        // The process dies while the hook runs.
        for _ in 0..20_000 {
            if calls.load(Ordering::SeqCst) - before == found as usize {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        holder.kill();
    }
    assert_eq!((dead_letters, calls.load(Ordering::SeqCst)), (1, 1 + 5));
    let next = exporter.build(on(&store.holder()));
    assert_eq!(next.recover().await.dead_letters, 1);
    let scrape = exporter.scrape().await;
    assert_eq!((scrape.value("session_dead_letters"), scrape.value("session_recovered_total")), (1.0, 5.0));
    assert_eq!(scrape.value(&ends("daily")), 1.0 + 5.0, "counted with its first reason");
    scrape.balances().unwrap();
}

#[tokio::test]
async fn releases_are_counted_by_cause() {
    let (exporter, store) = (Exporter::serve().await, Store::default());
    let (one, two) = (store.holder(), store.holder());
    let measured = exporter.build(on(&one).keep_if(|session, _| session.id == "kept"));
    let other = on(&two).build().unwrap();
    for id in ["shared", "ended", "forgotten", "kept", "mine"] {
        assert!(measured.note(id).recorded().await);
    }
    for id in ["shared", "ended"] {
        assert!(other.note(id).recorded().await);
    }
    assert!(other.end("ended", EndReason::Deleted));
    assert!(other.drain(EndReason::Restart).await.is_clean());
    assert!(on(&store.holder()).build().unwrap().note("shared").recorded().await);
    assert!(measured.forget("forgotten"));
    let report = measured.drain(EndReason::Restart).await;
    assert!(report.is_clean(), "{report}");
    let scrape = exporter.scrape().await;
    for how in ["forgotten", "kept", "held_elsewhere", "ended_elsewhere"] {
        assert_eq!(scrape.value(&releases(how)), 1.0, "{how}");
    }
    assert_eq!((scrape.value(&ends("restart")), scrape.value("session_active")), (1.0, 0.0));
    scrape.balances().unwrap();
}

#[tokio::test]
async fn an_end_that_a_shutdown_hands_over_counts_as_a_release() {
    let (exporter, holder) = (Exporter::serve().await, Store::default().holder());
    let sessions = exporter.build(on(&holder));
    assert!(sessions.note("a").recorded().await);
    holder.set(Fault::Down);
    let report = sessions.finish(ready(())).await.report;
    assert_eq!(report.sessions.handed_over, 1, "{report}");
    let scrape = exporter.scrape().await;
    assert_eq!((scrape.value(&releases("handed_over")), scrape.sum("session_ends_total")), (1.0, 0.0));
    assert_eq!(scrape.value("session_active"), 0.0);
    scrape.balances().unwrap();
}

#[tokio::test]
async fn after_an_expired_lease_held_sessions_count_as_new_starts() {
    let (exporter, holder) = (Exporter::serve().await, Store::default().holder());
    let sessions = exporter.build(on(&holder));
    assert!(sessions.note("a").recorded().await);
    holder.kill();
    assert!(sessions.note("b").recorded().await);
    // The record of the second one may have been written under the old lease.
    let scrape = exporter.until(&releases("ended_elsewhere"), 2.0).await;
    assert_eq!((scrape.value("session_starts_total"), scrape.value("session_active")), (4.0, 2.0));
    scrape.balances().unwrap();
}
