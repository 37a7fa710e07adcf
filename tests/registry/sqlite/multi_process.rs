//! What the other processes do.

use std::{
    convert::Infallible,
    future::ready,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions, EndReason, SessionEnd,
    registry::{Applied, Change, EndRecord, Record, Registry, RegistryError, SqliteRegistry},
};

use super::{
    process::{say, wait},
    support::{end, holds, record, records, release},
};

pub(crate) async fn play(role: &str, file: &Path) {
    match role {
        "open" => match SqliteRegistry::open(file) {
            Ok(registry) => say(format!("open, and then {:?}", attempt(&registry).await)),
            Err(error) => say(format!("{error:?}")),
        },
        "hold" => hold(&open(file)).await,
        "hold, with a child" => {
            let registry = open(file);
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            say(child.id());
            hold(&registry).await;
            // Whoever has killed this process ends the child.
            child.wait().unwrap();
        }
        "chats" => super::counters::serve(file, false).await,
        "the last of the chats" => super::counters::serve(file, true).await,
        "churn" => churn(&open(file)).await,
        "recover" => recover(&open(file)).await,
        "share" => share(&open(file)).await,
        "grow" => drop(grow(&open(file)).await),
        "lock the directory" => {
            let directory = file.with_file_name("sessions.db-leases");
            let lock = std::fs::File::options().create(true).write(true).truncate(false).open(directory.join("LOCK"));
            lock.unwrap().lock().unwrap();
            say("locked");
            wait();
        }
        "fill" => fill(file).await,
        "serve on a full disk" => serve_on_a_full_disk(file).await,
        _ => panic!("there is no role {role}"),
    }
}

fn open(file: &Path) -> SqliteRegistry {
    SqliteRegistry::open(file).unwrap()
}

async fn attempt(registry: &SqliteRegistry) -> Result<Vec<Applied>, RegistryError> {
    registry.apply(holds(&[record("attempt")])).await
}

/// Twenty sessions, of which five are ended, and five of these delivered.
async fn hold(registry: &SqliteRegistry) {
    let records = records("held-", 20);
    registry.apply(holds(&records)).await.unwrap();
    for record in &records[..10] {
        let restart = EndRecord::new(EndReason::Restart, None, SystemTime::now(), 3);
        registry.apply(vec![end(record, restart)]).await.unwrap();
    }
    let done = records[..5].iter().map(|record| Change::Delivered { generation: record.generation });
    registry.apply(done.collect()).await.unwrap();
    say("holds");
    wait();
}

/// Sessions that begin and end, for ever. Says of each what it is about to do, and what is certain.
async fn churn(registry: &SqliteRegistry) {
    let mut active: Vec<Record> = Vec::new();
    for round in 0.. {
        let born = records(&format!("{}-{round}-", std::process::id()), 1 + round % 8);
        for record in &born {
            say(format!("holding {}", record.generation));
        }
        let answers = registry.apply(holds(&born)).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Applied::Created), "{answers:?}");
        for record in &born {
            say(format!("held {}", record.generation));
        }
        active.extend(born);
        let over: Vec<_> = active.drain(..active.len() / 2).collect();
        for record in &over {
            say(format!("ending {}", record.generation));
        }
        let deleted = |record| end(record, EndRecord::new(EndReason::Deleted, None, SystemTime::now(), 1));
        registry.apply(over.iter().map(deleted).collect()).await.unwrap();
        for record in &over {
            say(format!("ended {}", record.generation));
        }
        for record in over.iter().step_by(2) {
            say(format!("delivering {}", record.generation));
        }
        let done = over.iter().step_by(2).map(|record| Change::Delivered { generation: record.generation });
        registry.apply(done.collect()).await.unwrap();
        for record in over.iter().step_by(2) {
            say(format!("delivered {}", record.generation));
        }
    }
}

/// Takes over what there is, three at a time, as often as it is told to. Delivers nothing.
async fn recover(registry: &SqliteRegistry) {
    say("ready");
    loop {
        wait();
        let orphans = registry.claim_orphans(3).await.unwrap();
        if orphans.is_empty() {
            say("nothing");
        }
        let claim = |orphan: &tower_session_end::registry::Orphan| {
            format!("{}={}={}", orphan.record.generation, orphan.end.reason, orphan.attempts)
        };
        if !orphans.is_empty() {
            say(orphans.iter().map(claim).collect::<Vec<_>>().join(" "));
        }
    }
}

/// Holds the same sessions as others do, and lets go one after the other.
async fn share(registry: &SqliteRegistry) {
    let shared = records("shared-", 200);
    let mut held = Vec::new();
    for (mine, answer) in shared.iter().zip(registry.apply(holds(&shared)).await.unwrap()) {
        held.push(if let Applied::Joined(record) = answer { record } else { mine.clone() });
    }
    say("ready");
    wait();
    for some in held.chunks(7) {
        let released = registry.apply(some.iter().map(|record| release(record, 1)).collect()).await.unwrap();
        for (record, answer) in some.iter().zip(released) {
            say(format!("{} {answer:?}", record.session.id));
        }
    }
}

/// Writes until it cannot. Says how it failed, and how many sessions were written.
async fn grow(registry: &SqliteRegistry) -> usize {
    let mut written = 0;
    loop {
        let more = records(&format!("{written}-"), 50);
        match registry.apply(holds(&more)).await {
            Ok(_) => written += more.len(),
            Err(error) => {
                say(format!("{error:?}"));
                // It is no reason to be taken for dead.
                registry.heartbeat().await.unwrap();
                say(written);
                return written;
            }
        }
        assert!(written < 1_000_000, "there is no limit");
    }
}

/// Fills a small disk, makes room, and goes on.
async fn fill(file: &Path) {
    let filler = file.with_file_name("filler");
    std::fs::write(&filler, vec![1; 256 * 1024]).unwrap();
    let registry = open(file);
    let written = grow(&registry).await;
    say(format!("{:?}", SqliteRegistry::open(file.with_file_name("other.db")).err()));
    std::fs::remove_file(filler).unwrap();
    say(format!("{:?}", attempt(&registry).await.unwrap()));
    let operator = rusqlite::Connection::open(file).unwrap();
    let found: i64 = operator.query_row("SELECT count(*) FROM active_sessions", (), |row| row.get(0)).unwrap();
    say(if found == written as i64 + 1 { "all are there".to_owned() } else { format!("{found} of {written}") });
}

/// A gateway whose disk is full, and then not any more.
async fn serve_on_a_full_disk(file: &Path) {
    let filler = file.with_file_name("filler");
    std::fs::write(&filler, vec![1; 512 * 1024]).unwrap();
    // On a full disk there is no room for the row of another holder.
    let (filling, registry) = (open(file), open(file));
    grow(&filling).await;
    let sessions = ActiveSessions::builder()
        .on_session_end(async |end: SessionEnd| say(format!("{} {}", end.session.id, end.reason)))
        .registry(registry)
        .build()
        .unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
    let host = service_fn(|request: Request<()>| {
        let response = Response::builder().header("x-session-id", request.uri().path().trim_start_matches('/'));
        ready(Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap()))
    });
    let mut slow = 0;
    for n in 0..50 {
        let begun = Instant::now();
        let request = Request::post(format!("/s{n}")).body(()).unwrap();
        let response = sessions.layer().layer(host).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        slow += u32::from(begun.elapsed() > Duration::from_millis(100));
    }
    say(format!("50 births, {slow} of them slow, degraded: {}", sessions.is_degraded()));
    std::fs::remove_file(filler).unwrap();
    while sessions.is_degraded() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say(format!("back, and durable: {}", sessions.note("late").recorded().await));
    driver.abort();
    let report = sessions.drain(EndReason::Shutdown).await;
    say(format!("clean: {}", report.is_clean()));
}
