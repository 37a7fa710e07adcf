//! An axum application whose chats are in the database of the session registry, in three replicas behind a round-robin client.
//! Each chat ends exactly once, although replicas are restarted and killed, and the database is restarted under load.
//!
//! `cargo run -p postgres-example` starts its own PostgreSQL server in a temporary directory. `host` is the application, `hook`
//! writes the chats, `replicas` has the processes and the clients.

mod hook;
mod host;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../tests/support/postgres_server.rs"]
mod postgres_server;
mod replicas;

use std::{env, io, process::ExitCode, time::Duration};

use crash::{Client, Error, PATIENCE};
use postgres_server::PostgresServer;
use replicas::{Load, Replicas};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};
use tracing_subscriber::filter::LevelFilter;

const REPLICAS: usize = 3;

async fn demonstrate() -> Result<(), Error> {
    if !postgres_server::is_installed() {
        return Ok(());
    }
    let mut server = block_in_place(|| PostgresServer::start(&[]));
    let pool = PgPoolOptions::new().connect(&server.url()).await?;
    sqlx::raw_sql(hook::TABLE).execute(&pool).await?;
    let mut replicas = Replicas::start(env::current_exe()?, server.url(), REPLICAS).await?;

    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(open(&replicas.balancer.next()?).await?);
    }
    use_everywhere(&replicas, &ids).await?;
    println!(
        "three replicas on one PostgreSQL, six chats, each used on every replica; eight clients open more of them"
    );
    let load = Load::start(&replicas.balancer, 8);

    println!("\na rolling restart");
    for _ in 0..REPLICAS {
        print!("SIGTERM: {}", replicas.stop_oldest().await?.report);
        replicas.start_one().await?;
        use_everywhere(&replicas, &ids).await?;
    }
    let ended = "SELECT count(*) FROM chats WHERE id = ANY($1) AND ended_at IS NOT NULL";
    if count(&pool, ended, &ids).await? > 0 {
        return Err("a chat ended in the rolling restart".into());
    }
    println!("none of the six chats has ended: other replicas held them");

    let mut alone = Vec::new();
    for _ in 0..3 {
        alone.push(open(&replicas.clients()[0]).await?);
    }
    println!("\nSIGKILL of a replica that alone holds three chats");
    replicas.kill_oldest().await?;
    until(&pool, ended, &alone, 3).await?;
    println!("its lease has expired, and another replica has ended them");
    replicas.start_one().await?;

    println!("\npg_ctl restart -m immediate");
    block_in_place(|| server.restart_immediately());
    for client in replicas.clients() {
        ids.push(open(&client).await?);
    }
    println!("each replica opens chats again");

    ids.extend(load.stop().await);
    ids.append(&mut alone);
    println!("\nSIGTERM to all replicas");
    for gone in replicas.stop_all().await? {
        print!("{}", gone.report);
    }
    println!("\na last process. {}", replicas.start_one().await?);
    let left = "SELECT (SELECT count(*) FROM session_end.active_sessions)
        + (SELECT count(*) FROM session_end.ending_sessions) + (SELECT count(*) FROM session_end.dead_letters)";
    until(&pool, left, &[], 0).await?;
    replicas.stop_all().await?;
    check(&pool, &ids).await
}

/// Sends a message to each replica in each chat.
async fn use_everywhere(replicas: &Replicas, ids: &[String]) -> Result<(), Error> {
    for client in replicas.clients() {
        for id in ids {
            client.say(id).await?;
        }
    }
    Ok(())
}

/// Opens a chat. A replica refuses new ones while its registry does not answer: then this tries again.
async fn open(client: &Client) -> Result<String, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.open().await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
            opened => return opened,
        }
    }
}

/// The number that this query returns; `$1` are ids.
async fn count(pool: &PgPool, query: &str, ids: &[String]) -> Result<i64, Error> {
    Ok(sqlx::query_scalar(query).bind(ids).fetch_one(pool).await?)
}

/// Waits until the query returns this number.
async fn until(pool: &PgPool, query: &str, ids: &[String], expected: i64) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = count(pool, query, ids).await?;
        if found == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{query}: {found} instead of {expected}").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Prints the chats, and checks that each that a client knows is there and that each has ended exactly once.
async fn check(pool: &PgPool, ids: &[String]) -> Result<(), Error> {
    let summary =
        "SELECT coalesce(reason, 'active'), ends, count(*), sum(messages) FROM chats GROUP BY 1, 2 ORDER BY 1, 2";
    println!("\n{:<10} {:>5} {:>6} {:>9}", "reason", "ends", "chats", "messages");
    for (reason, ends, chats, messages) in sqlx::query_as::<_, (String, i32, i64, i64)>(summary).fetch_all(pool).await?
    {
        println!("{reason:<10} {ends:>5} {chats:>6} {messages:>9}");
    }
    let known = count(pool, "SELECT count(DISTINCT id) FROM chats WHERE id = ANY($1)", ids).await?;
    if known != i64::try_from(ids.len())? {
        return Err(format!("the clients know {} chats, and {known} of them are in the database", ids.len()).into());
    }
    match count(pool, "SELECT count(*) FROM chats WHERE ends <> 1 OR ended_at IS NULL", &[]).await? {
        0 => println!("\neach chat has ended exactly once, and no record is left in the registry"),
        wrong => return Err(format!("{wrong} chats have not ended exactly once").into()),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    // While the database restarts, the replicas warn.
    let level = env::var("GATEWAY_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::ERROR);
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).init();
    let args: Vec<_> = env::args().skip(1).collect();
    let outcome = match &args[..] {
        [command, url] if command == "serve" => host::serve(url).await,
        [_, ..] => Err("no arguments are expected".into()),
        [] => {
            let outcome = demonstrate().await;
            postgres_server::remove_template();
            outcome
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postgres-example: {error}");
            ExitCode::FAILURE
        }
    }
}
