//! A small agent gateway that keeps its sessions in SQLite, to try with curl.
//!
//! ```text
//! cargo run -p gateway
//!
//! curl -i -X POST localhost:3000/sessions -H 'content-type: application/json' -d '{"key": "telegram:42"}'
//! id=...                                                        # the x-session-id of the answer
//! curl -X POST localhost:3000/chat -H "x-session-id: $id" -d 'hello'
//! curl -i -X POST localhost:3000/compact -H "x-session-id: $id"
//! id=...                                                        # the old one is 404 now; or `/reset`, likewise
//! curl localhost:3000/sessions
//! curl -i -X DELETE localhost:3000/session -H "x-session-id: $id"
//! curl -i localhost:3000/readyz                                 # 503 from the signal on
//!
//! sqlite3 sessions.db 'SELECT session_key, status, reason, end_count FROM sessions'
//! ```
//!
//! Ctrl-C and SIGTERM stop it with reason `shutdown`, SIGUSR1 with `restart`; a second signal ends all waiting at once.
//! Afterwards no row is `active`, and each has one end. The settings are environment variables: see [`Config`].
//!
//! It exits with 0 if every session had its end, and with 1 if not, or if the server failed. Connections that had to be
//! cut do not count: that is what their budget is for.

mod agent;
mod app;
mod config;
mod store;

use std::{io::stderr, process::ExitCode};

use tokio::{net::TcpListener, runtime::Runtime};
use tower_session_end::{ActiveSessions, BoxError, EndReason, SessionEnd, ShutdownReport, signal};

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
        // A stop ends all sessions at the same moment: one transaction for many rows.
        .on_session_end_batch(256, move |batch: Vec<SessionEnd>| {
            // Whatever ended them: what is kept for a session goes with it.
            batch.iter().for_each(|end| memory.forget(&end.session.id));
            ends.clone().complete(batch)
        })
        .build()?;

    // Before anybody can learn the address, so that no signal is missed.
    let signals = signal::terminate();
    #[cfg(unix)]
    let signals = signals.on(signal::SignalKind::user_defined1(), EndReason::Restart);

    let listener = TcpListener::bind(&config.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let app = app::router(agent, &sessions);
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signals));
    Ok(sessions.finish(server).await.into_result()?)
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(stderr).init();

    let outcome = Config::from_env().and_then(|config| {
        let runtime = Runtime::new()?;
        let outcome = runtime.block_on(run(config));
        // A hook that is stuck in SQLite cannot be stopped, and dropping the runtime would wait for it: the stop would
        // take as long as it likes. `#[tokio::main]` drops the runtime.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(report) => {
            println!("{report}");
            if report.sessions.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}
