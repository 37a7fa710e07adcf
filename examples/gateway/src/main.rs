//! A small agent gateway that keeps its sessions in SQLite, to try with curl.
//!
//! ```text
//! cargo run -p gateway
//!
//! curl -i -X POST localhost:3000/sessions -H 'content-type: application/json' -d '{"key": "telegram:42"}'
//! id=...                                                        # the x-session-id of the response
//! curl -X POST localhost:3000/chat -H "x-session-id: $id" -d 'hello'
//! curl -i -X POST localhost:3000/compact -H "x-session-id: $id"
//! id=...                                                        # the old id is 404 now; `/reset` works the same way
//! curl localhost:3000/sessions
//! curl -i -X DELETE localhost:3000/session -H "x-session-id: $id"
//! curl -i localhost:3000/readyz                                 # 503 from the signal on
//!
//! sqlite3 sessions.db 'SELECT session_key, status, reason, end_count FROM sessions'
//! ```
//!
//! Ctrl-C and SIGTERM shut it down with reason `shutdown`, SIGUSR1 with `restart`. A second signal ends the waiting at
//! once. A drain that takes longer than a second logs its progress. Afterwards no row is `active`, and each has one end.
//! The settings are environment variables: see [`Config`].
//!
//! It exits with 0 if every session had its end, and with 1 if not, or if the server failed. Connections that were
//! closed at their deadline do not change the exit code.

mod agent;
mod app;
mod config;
mod store;

use std::{
    io::stderr,
    process::{ExitCode, exit},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Runtime, time::sleep};
use tower_session_end::{ActiveSessions, BoxError, DrainWatch, EndReason, SessionEnd, ShutdownReport, signal};

use crate::{agent::Agent, config::Config, store::Store};

async fn run(config: Config) -> Result<ShutdownReport, BoxError> {
    let store = Store::open(&config.db)?.slowed_by(config.hook_delay);
    let agent = Agent::new(config.think);

    let (starts, ends, memory) = (store.clone(), store, agent.clone());
    let sessions = ActiveSessions::builder()
        .lame_duck_timeout(config.lame_duck)
        .drain_timeout(config.drain_timeout)
        .connection_drain_timeout(config.connection_drain_timeout)
        .on_session_start(move |start| starts.clone().insert(start))
        // A shutdown ends all sessions at once: a batch writes many rows in one transaction.
        .on_session_end_batch(256, move |batch: Vec<SessionEnd>| {
            // Drops the state of each ended session.
            batch.iter().for_each(|end| memory.forget(&end.session.id));
            ends.clone().complete(batch)
        })
        .build()?;

    // Registered before the address is printed, so that no signal is missed.
    let signals = signal::terminate();
    #[cfg(unix)]
    let signals = signals.on(signal::SignalKind::user_defined1(), EndReason::Restart);

    let listener = TcpListener::bind(&config.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);

    tokio::spawn(log_progress(sessions.drain_progress()));
    let app = app::router(agent, &sessions);
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signals));
    let report = sessions.finish(server).await.into_result()?;

    // tokio still handles SIGINT and SIGTERM. So that they end the process while it does its last work:
    let again = signal::terminate();
    println!("{report}");
    tokio::spawn(async {
        again.await;
        exit(1);
    });
    sleep(config.linger).await;
    Ok(report)
}

/// Logs a line a second while a drain lasts.
async fn log_progress(mut watch: DrainWatch) {
    while watch.changed().await.is_some() {
        loop {
            sleep(Duration::from_secs(1)).await;
            let progress = watch.now();
            if progress.ended == progress.of {
                break;
            }
            let left = progress.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            tracing::info!(left_s = left.map(|left| left.as_secs_f32()), "{progress}");
        }
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(stderr).init();

    let outcome = Config::from_env().and_then(|config| {
        let runtime = Runtime::new()?;
        let outcome = runtime.block_on(run(config));
        // A hook that blocks in SQLite cannot be cancelled. Dropping the runtime, as `#[tokio::main]` does, would wait
        // for it without a limit.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(report) if report.sessions.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}
