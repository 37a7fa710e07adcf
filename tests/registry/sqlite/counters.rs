//! The counter test: processes with a transaction hook that increments are killed at random moments. At the end each row that
//! was ever committed has one start and one end.

use std::{future::pending, path::Path, thread, time::Duration};

use tower_session_end::{ActiveSessions, BoxError, EndReason, registry::SqliteRegistry};

use super::{
    process::{Process, say, wait},
    support::{Dir, count},
    transaction::{Chats, open},
};
use crate::support::{
    clients::spawn_clients,
    random::{Random, storm_seeds},
};

/// How many clients start and end sessions in each process.
const CLIENTS: u64 = 250;

/// The role of a process. It recovers, then starts and ends sessions until it is killed. With `last`, it ends when it is asked to.
pub(crate) async fn serve(file: &Path, is_last: bool) {
    let registry = SqliteRegistry::builder(file).transaction_hook("chats", Chats::default()).open().unwrap();
    let sessions = ActiveSessions::builder()
        .registry(registry)
        .drain_timeout(Duration::from_secs(60))
        .on_session_end(async |_| {
            // A kill between this hook and the commit is as likely as any other.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, BoxError>(())
        })
        .build()
        .unwrap();
    // On a busy machine a call may come too late; the next recovery finds the rest.
    while sessions.recover().await.error.is_some() {}
    say("ready");
    if is_last {
        wait();
        let report = sessions.drain(EndReason::Shutdown).await;
        assert!(report.is_clean(), "{report}");
        let _ = sessions.finish(async {}).await;
        return say("done");
    }
    tokio::spawn(sessions.shutdown_on(pending::<()>()));
    spawn_clients(&sessions, CLIENTS, 0..40);
    pending().await
}

#[tokio::test]
async fn g19_each_counter_is_one_whenever_the_processes_are_killed() {
    let mut random = Random::new(storm_seeds().next().unwrap_or_default());
    let dir = Dir::new();
    drop(open(&dir, Chats::default()));
    let wrong = "SELECT count(*) FROM chats WHERE starts <> 1 OR ends > 1";
    let mut replica = Process::start("chats", &dir.file());
    for seed in storm_seeds() {
        println!("STORM_SEED={seed}");
        let mut next = Process::start("chats", &dir.file());
        // One in four is killed while it recovers.
        if !random.one_in(4) {
            next.expect("ready");
        }
        thread::sleep(Duration::from_micros(random.below(400_000)));
        replica.kill();
        assert_eq!(count(&dir, wrong), 0);
        replica = next;
    }
    replica.kill();
    let mut last = Process::start("the last of the chats", &dir.file());
    last.expect("ready");
    last.go();
    last.expect("done");
    let all = count(&dir, "SELECT count(*) FROM chats");
    println!("{all} sessions");
    assert!(all > 0);
    assert_eq!(count(&dir, "SELECT count(*) FROM chats WHERE starts <> 1 OR ends <> 1"), 0, "of {all}");
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
}
