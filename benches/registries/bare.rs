//! The same recovery by hand: bare statements for the rows that a registry has written.
//!
//! In batches of 256 it reads the rows of the dead holder, counts an attempt in each row, calls the hook, and removes the rows. The
//! attempts are durable before the hook is called, and the removals before the next batch, as durable as the registry's own
//! commits. Nothing else is written, and no lease is checked.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use redis::{Client, aio::MultiplexedConnection};
use rusqlite::Connection;
use sqlx::{PgPool, Row};
use tower_session_end::registry::SqliteRegistry;

use crate::{measure::Fallible, postgres_server::PostgresServer, redis_server::RedisServer};

/// As many as a registry counts at a time.
const BATCH: usize = 256;

/// A hook that does nothing.
fn call(id: &str, details: &str) {
    black_box((id, details));
}

pub(crate) fn sqlite(registry: &SqliteRegistry, sessions: usize) -> Fallible<Duration> {
    let mut file = Connection::open(registry.path())?;
    file.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
    let begun = Instant::now();
    let dead: i64 = file.query_row("SELECT min(holder) FROM holds", (), |row| row.get(0))?;
    let (mut ended, mut cursor) = (0, 0);
    loop {
        let batch: Vec<(i64, String, String)> = file
            .prepare_cached(
                "SELECT s.number, s.id, s.details FROM holds h JOIN sessions s ON s.number = h.session
                 WHERE h.holder = ?1 AND h.session > ?2 ORDER BY h.session LIMIT ?3",
            )?
            .query_map((dead, cursor, BATCH as i64), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let Some((last, ..)) = batch.last() else { break };
        cursor = *last;
        for (sql, is_called) in [
            ("UPDATE sessions SET attempts = attempts + 1 WHERE number = ?1", true),
            ("DELETE FROM sessions WHERE number = ?1", false),
        ] {
            let transaction = file.transaction()?;
            {
                let mut statement = transaction.prepare_cached(sql)?;
                for (number, ..) in &batch {
                    statement.execute([number])?;
                }
            }
            transaction.commit()?;
            if is_called {
                batch.iter().for_each(|(_, id, details)| call(id, details));
            }
        }
        ended += batch.len();
    }
    all(ended, sessions, begun)
}

pub(crate) async fn redis(server: &RedisServer, sessions: usize) -> Fallible<Duration> {
    const ROOT: &str = "{tower-session-end}:";
    let mut connection: MultiplexedConnection = Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let begun = Instant::now();
    let held: Vec<String> = redis::cmd("KEYS").arg(format!("{ROOT}held:*")).query_async(&mut connection).await?;
    let held = held.first().ok_or("no holder")?;
    let mut ended = 0;
    loop {
        let batch: Vec<String> =
            redis::cmd("ZRANGE").arg(held).arg(0).arg(BATCH - 1).query_async(&mut connection).await?;
        if batch.is_empty() {
            break;
        }
        let record = |generation: &String| format!("{ROOT}session:{generation}");
        let mut read = redis::pipe();
        for generation in &batch {
            read.cmd("HMGET").arg(record(generation)).arg(&["id", "session", "started_at", "requests", "attempts"]);
        }
        let records: Vec<Vec<Option<String>>> = read.query_async(&mut connection).await?;
        let mut count = redis::pipe();
        for generation in &batch {
            count.cmd("HINCRBY").arg(record(generation)).arg("attempts").arg(1).ignore();
        }
        count.query_async::<()>(&mut connection).await?;
        let mut remove = redis::pipe();
        for (generation, fields) in batch.iter().zip(&records) {
            let [Some(id), Some(details), ..] = &fields[..] else { return Err("a record without its fields".into()) };
            call(id, details);
            remove.cmd("ZREM").arg(held).arg(generation).ignore();
            remove.cmd("ZREM").arg(format!("{ROOT}id:{id}")).arg(generation).ignore();
            remove.cmd("DEL").arg(record(generation)).ignore();
        }
        remove.query_async::<()>(&mut connection).await?;
        ended += batch.len();
    }
    all(ended, sessions, begun)
}

pub(crate) async fn postgres(server: &PostgresServer, sessions: usize) -> Fallible<Duration> {
    let pool = PgPool::connect(&server.url()).await?;
    let begun = Instant::now();
    let dead: i64 = sqlx::query_scalar("SELECT min(holder) FROM session_end.holds").fetch_one(&pool).await?;
    let (mut ended, mut cursor) = (0, 0_i64);
    loop {
        let batch = sqlx::query(
            "SELECT s.number, s.id, s.details::text AS details FROM session_end.holds h
             JOIN session_end.sessions s ON s.number = h.session
             WHERE h.holder = $1 AND h.session > $2 ORDER BY h.session LIMIT $3",
        );
        let batch = batch.bind(dead).bind(cursor).bind(BATCH as i64).fetch_all(&pool).await?;
        let numbers = batch.iter().map(|row| row.try_get("number")).collect::<Result<Vec<i64>, _>>()?;
        let Some(last) = numbers.last() else { break };
        cursor = *last;
        let count = "UPDATE session_end.sessions SET attempts = attempts + 1 WHERE number = ANY($1)";
        sqlx::query(count).bind(&numbers).execute(&pool).await?;
        for row in &batch {
            call(row.try_get("id")?, row.try_get("details")?);
        }
        let remove = "WITH removed AS (DELETE FROM session_end.holds WHERE session = ANY($1))
             DELETE FROM session_end.sessions WHERE number = ANY($1)";
        sqlx::query(remove).bind(&numbers).execute(&pool).await?;
        ended += batch.len();
    }
    all(ended, sessions, begun)
}

fn all(ended: usize, sessions: usize, begun: Instant) -> Fallible<Duration> {
    match ended == sessions {
        true => Ok(begun.elapsed()),
        false => Err(format!("{ended} of {sessions} sessions").into()),
    }
}
