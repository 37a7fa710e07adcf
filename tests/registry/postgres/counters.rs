//! The counter test: replicas with a transaction hook that increments are killed and stopped at random moments, and so is the
//! server. At the end each row that was ever committed has one start and one end.

use std::{
    future::pending,
    thread,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use tower_session_end::{
    ActiveSessions, BoxError, GenerationId, SessionEnd, SessionStart, registry::PostgresTransactionHook,
};

use super::{
    process::{Process, say, wait_for_a_line},
    support::{PATIENCE, PostgresServer, SHORT, builder, holder, is_installed},
};
use crate::support::{
    clients::spawn_clients,
    random::{Random, storm_seeds},
};

/// How many clients start and end sessions in each of two processes: 250, or `STORM_CLIENTS`.
fn clients() -> u64 {
    std::env::var("STORM_CLIENTS").map_or(250, |clients| clients.parse().unwrap())
}

/// One row for each generation.
struct Chats;

impl PostgresTransactionHook for Chats {
    async fn session_start(&self, transaction: &mut PgConnection, start: &SessionStart) -> Result<(), BoxError> {
        count(transaction, "starts", &[start.generation]).await
    }

    async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
        let generations: Vec<_> = ends.iter().map(|end| end.generation).collect();
        count(transaction, "ends", &generations).await
    }
}

async fn count(transaction: &mut PgConnection, column: &str, generations: &[GenerationId]) -> Result<(), BoxError> {
    let count = match column {
        "starts" => {
            "INSERT INTO chats (generation, starts) SELECT unnest($1::text[]), 1
             ON CONFLICT (generation) DO UPDATE SET starts = chats.starts + 1"
        }
        _ => {
            "INSERT INTO chats (generation, ends) SELECT unnest($1::text[]), 1
             ON CONFLICT (generation) DO UPDATE SET ends = chats.ends + 1"
        }
    };
    let generations: Vec<_> = generations.iter().map(ToString::to_string).collect();
    sqlx::query(count).bind(generations).execute(transaction).await?;
    Ok(())
}

/// The role of a process. It recovers, and starts and ends sessions until it is killed; with `is_last` it only recovers.
pub(crate) async fn serve(url: &str, schema: &str, is_last: bool) {
    let registry = builder(url, schema).lease(SHORT).transaction_hook("chats", Chats).lazy();
    let sessions = ActiveSessions::builder()
        .registry(registry)
        .on_session_end(async |_| {
            // A kill between this hook and the commit is as likely as any other.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, BoxError>(())
        })
        .build()
        .unwrap();
    // While the server restarts this is an error, and the heartbeats recover later.
    println!("{}", sessions.recover().await);
    say("ready");
    tokio::spawn(sessions.shutdown_on(pending::<()>()));
    if is_last {
        return drop(tokio::task::spawn_blocking(wait_for_a_line).await);
    }
    spawn_clients(&sessions, clients(), 50..250);
    pending().await
}

/// Waits until this count is zero, as long as it becomes smaller.
fn until_none_is_left(server: &PostgresServer, count: &str) {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    while least > 0 {
        let left = server.ask(count).parse().unwrap();
        if left < least {
            (least, since) = (left, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{count}: {left}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn g19_each_counter_is_one_whatever_happens_to_the_processes_and_the_server() {
    if !is_installed() {
        return;
    }
    let mut server = PostgresServer::start(&[]);
    let schema = "session_end";
    let table =
        "CREATE TABLE chats (generation text PRIMARY KEY, starts int NOT NULL DEFAULT 0, ends int NOT NULL DEFAULT 0)";
    server.ask(table);
    drop(holder(&server, schema).await);
    let twice = "SELECT count(*) FROM chats WHERE starts > 1 OR ends > 1";
    let mut replica = Process::with_role(&server, schema, "serve");
    for (round, seed) in storm_seeds().enumerate() {
        println!("STORM_SEED={seed}");
        let mut random = Random::new(seed);
        let mut next = Process::with_role(&server, schema, "serve");
        // One in four is killed while it recovers.
        if !random.one_in(4) {
            assert_eq!(next.hear(), "ready");
        }
        thread::sleep(Duration::from_micros(random.below(500_000)));
        match round % 3 {
            0 => replica.kill(),
            1 => {
                // Beyond its lease, and then it goes on for a while.
                replica.signal("STOP");
                thread::sleep(2 * SHORT + Duration::from_millis(random.below(1000)));
                replica.signal("CONT");
                thread::sleep(Duration::from_micros(random.below(500_000)));
                replica.kill();
            }
            _ => {
                server.restart_immediately();
                thread::sleep(Duration::from_micros(random.below(1_000_000)));
                replica.kill();
            }
        }
        assert_eq!(server.ask(twice), "0");
        replica = next;
    }
    replica.kill();
    let mut last = Process::with_role(&server, schema, "recover");
    assert_eq!(last.hear(), "ready");
    // An end whose calls were interrupted by five kills is a dead letter. An operator asks for it.
    until_none_is_left(&server, &format!("SELECT count(*) FROM {schema}.sessions WHERE NOT dead"));
    let errors = server.ask(&format!("SELECT attempts, error, count(*) FROM {schema}.dead_letters GROUP BY 1, 2"));
    let redelivered = builder(&server.url(), schema).lazy().redeliver_all().await.unwrap();
    until_none_is_left(&server, &format!("SELECT count(*) FROM {schema}.sessions"));
    let all = server.ask("SELECT count(*) FROM chats");
    println!("{all} generations, of which {redelivered} were dead letters: {errors}");
    assert_ne!(all, "0");
    let wrong = "SELECT generation, starts, ends FROM chats WHERE starts <> 1 OR ends <> 1 LIMIT 10";
    assert_eq!(server.ask(wrong), "", "of {all}");
}
