//! A gateway that reports its sessions to a memory plugin, so that none of them is `active` there after a shutdown.
//!
//! ```text
//! cargo run -p memory_plugin                   # drives itself, and fails if a session is still active
//! cargo run -p memory_plugin serve             # the gateway alone, until SIGTERM or Ctrl-C
//! cargo run -p memory_plugin receiver          # a minimal plugin alone, with its table in an SQLite file
//!
//! curl -i localhost:3000/chat -H 'content-type: application/json' -d '{"message": "hello", "project": "demo"}'
//! id=...                                                            # the x-session-id of the response
//! curl localhost:3000/chat -H "x-session-id: $id" -H 'content-type: application/json' -d '{"message": "again"}'
//! curl -i -X POST localhost:3000/compact -H "x-session-id: $id"     # continues under a new id
//! curl -i -X DELETE localhost:3000/session -H "x-session-id: $id"   # a later chat with the id resumes it
//!
//! sqlite3 memory.db 'SELECT content_session_id, project, status, completed_at FROM sdk_sessions'
//! ```
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `MEMORY_PLUGIN_URL` | `http://127.0.0.1:37777` | the URL of the plugin; may have a path. Without it, the program without a mode starts a plugin of its own, on a free port |
//! | `MEMORY_PLUGIN_TIMEOUT_MS` | 5000 | the timeout of one attempt |
//! | `MEMORY_PLUGIN_LIMIT` | `300/60` | at most this number of calls in this number of seconds |
//! | `GATEWAY_ADDR` | `127.0.0.1:3000` | where `serve` listens; port 0 takes any free port |
//! | `GATEWAY_DRAIN_TIMEOUT_MS` | 10000 | the budget for the ends at shutdown |
//! | `RECEIVER_ADDR` | `127.0.0.1:37777` | where `receiver` listens |
//! | `RECEIVER_DB` | `memory.db` | its SQLite file |
//!
//! A session costs two calls, so a drain of 10 s can need more than the limit allows. What the plugin has not accepted by
//! the deadline is in the report, as `failed` or as `unfinished`.
//!
//! `serve` exits with 0 if the plugin has accepted every end, and with 1 if not.

mod demo;

use std::{
    env::{self, VarError},
    io::stderr,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use memory_plugin::{
    base_url::BaseUrl,
    gateway,
    limits::CallLimit,
    plugin::MemoryPlugin,
    receiver::{self, Store},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tower_session_end::{BoxError, signal};
use tracing_subscriber::filter::LevelFilter;

/// The default address of the plugin.
const DEFAULT_PLUGIN: &str = "127.0.0.1:37777";

/// The settings of the gateway, from the environment.
struct Config {
    /// `None` if it is not set.
    plugin: Option<BaseUrl>,
    patience: Duration,
    limit: CallLimit,
    drain_timeout: Duration,
}

impl Config {
    fn from_env() -> Result<Self, BoxError> {
        let plugin = match var("MEMORY_PLUGIN_URL")? {
            // The error omits the value, which may contain a password.
            Some(url) => Some(url.trim().parse().map_err(|error| format!("MEMORY_PLUGIN_URL is {error}"))?),
            None => None,
        };
        Ok(Self {
            plugin,
            patience: millis("MEMORY_PLUGIN_TIMEOUT_MS", 5_000)?,
            limit: match var("MEMORY_PLUGIN_LIMIT")? {
                Some(limit) => limit.parse().map_err(|error| format!("MEMORY_PLUGIN_LIMIT is {error}"))?,
                None => CallLimit::default(),
            },
            drain_timeout: millis("GATEWAY_DRAIN_TIMEOUT_MS", 10_000)?,
        })
    }

    fn plugin_at(&self, base: &BaseUrl) -> Result<MemoryPlugin, BoxError> {
        Ok(MemoryPlugin::new(base, self.patience, self.limit)?)
    }
}

fn var(name: &str) -> Result<Option<String>, BoxError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(format!("{name}: {error}").into()),
    }
}

fn millis(name: &str, default: u64) -> Result<Duration, BoxError> {
    let Some(value) = var(name)? else { return Ok(Duration::from_millis(default)) };
    Ok(Duration::from_millis(value.parse().map_err(|error| format!("{name}={value}: {error}"))?))
}

async fn serve(config: Config) -> Result<(), BoxError> {
    let base = match &config.plugin {
        Some(base) => base.clone(),
        None => format!("http://{DEFAULT_PLUGIN}").parse()?,
    };
    let plugin = config.plugin_at(&base)?;
    // Registered before the address is printed, so that no signal is missed.
    let signal = signal::terminate();
    let listener = TcpListener::bind(var("GATEWAY_ADDR")?.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let tally = plugin.tally();
    let report = gateway::serve(listener, plugin, config.drain_timeout, signal).await?;
    println!("{report}");
    let (inits, completes, failed) = tally.counts();
    println!("the plugin accepted {inits} init and {completes} complete, and {failed} calls failed");
    if report.sessions.is_clean() { Ok(()) } else { Err("the plugin did not accept every end".into()) }
}

async fn receive() -> Result<(), BoxError> {
    let signal = signal::terminate();
    let store = Store::open(Path::new(var("RECEIVER_DB")?.as_deref().unwrap_or("memory.db")))?;
    let listener = TcpListener::bind(var("RECEIVER_ADDR")?.as_deref().unwrap_or(DEFAULT_PLUGIN)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, receiver::router(store)).with_graceful_shutdown(async { drop(signal.await) }).await?)
}

fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(stderr).init();

    let arguments: Vec<String> = env::args().skip(1).collect();
    let run = async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => demo::run(Config::from_env()?).await,
            ["serve"] => serve(Config::from_env()?).await,
            ["receiver"] => receive().await,
            _ => Err("usage: memory_plugin [serve | receiver]".into()),
        }
    };
    let outcome = Runtime::new().map_err(BoxError::from).and_then(|runtime| {
        let outcome = runtime.block_on(run);
        // Does not wait for blocking work in SQLite.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory_plugin: {error}");
            ExitCode::FAILURE
        }
    }
}
