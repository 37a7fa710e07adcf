//! A Redis that is paused, killed, or away across a drain.

use std::{future::pending, time::Duration};

use tower_session_end::EndReason;

use super::support::{ABOUT_250_MS, handle, redis, request, until};
use crate::support::recorder::assert_sum;
use crate::support::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn g17_while_redis_is_paused_no_request_fails_and_a_birth_waits_250_ms_at_most() {
    let server = RedisServer::start();
    let (recorder, sessions) = handle(redis(&server, 2000).await).await;
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    request(&sessions, "known").await;
    server.ask("CLIENT PAUSE 3000 ALL");

    // A known session does not notice, even while the first birth waits.
    let (birth, known) = tokio::join!(request(&sessions, "first"), request(&sessions, "known"));
    assert!(birth < ABOUT_250_MS, "{birth:?}");
    assert!(known < birth || birth < Duration::from_millis(50), "{known:?} beside a birth of {birth:?}");
    until("degraded", || sessions.is_degraded()).await;
    for n in 0..100 {
        let birth = request(&sessions, &format!("later-{n}")).await;
        assert!(birth < Duration::from_millis(200), "the breaker is open: {birth:?}");
    }
    // Back again: all is recorded, and nobody was told anything twice.
    until("restored", || !sessions.is_degraded()).await;
    until("recorded", || server.keys().iter().filter(|key| key.contains(":session:")).count() == 102).await;
    driver.abort();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.ended, 102);
    assert_eq!(recorder.starts().len(), 102);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_while_redis_is_gone_everything_goes_on_and_is_made_up_for() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (recorder, sessions) = handle(redis(&server, 2000).await).await;
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["stays", "ends"] {
        request(&sessions, id).await;
    }
    server.kill();
    request(&sessions, "born-meanwhile").await;
    assert!(sessions.end("ends", EndReason::Reset));
    until("degraded", || sessions.is_degraded()).await;
    // Another replica may hold them.
    assert!(recorder.ends().is_empty());
    assert_eq!(recorder.order("born-meanwhile"), "");
    server.start_again();
    until("the end is delivered", || !recorder.ends().is_empty()).await;
    until("restored", || !sessions.is_degraded()).await;
    let active = |server: &RedisServer| server.keys().iter().filter(|key| key.contains(":session:")).count();
    until("made up for", || active(&server) == 2 && !server.keys().iter().any(|key| key.contains(":end:"))).await;
    driver.abort();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 2, "{report}");
    for id in ["stays", "ends", "born-meanwhile"] {
        assert_eq!(recorder.order(id), "+-");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_with_redis_paused_across_the_drain_sessions_are_handed_over_and_a_survivor_ends_them() {
    let server = RedisServer::start();
    let (recorder, sessions) = handle(redis(&server, 1000).await).await;
    for n in 0..50 {
        request(&sessions, &format!("s{n}")).await;
    }
    server.ask("CLIENT PAUSE 4000 ALL");
    let begun = tokio::time::Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!((report.ended, report.handed_over), (0, 50), "{report}");
    assert_sum(&report);
    assert!(recorder.ends().is_empty());
    drop(sessions);

    tokio::time::sleep(Duration::from_secs(3)).await;
    let (survivor, sessions) = handle(redis(&server, 1000).await).await;
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    until("taken over", || survivor.ends().len() == 50).await;
    driver.abort();
    survivor.assert_no_generation_ended_twice();
    let mut ids: Vec<_> = survivor.ends().iter().map(|end| end.session.id.to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
}
