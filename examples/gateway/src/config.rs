//! The settings, from the environment.

use std::{
    env::{self, VarError},
    path::PathBuf,
    time::Duration,
};

use tower_session_end::BoxError;

/// | variable | default | meaning |
/// |---|---|---|
/// | `GATEWAY_LISTEN` | `127.0.0.1:3000` | port 0 takes any free port |
/// | `GATEWAY_DB` | `sessions.db` | the SQLite file |
/// | `GATEWAY_LAME_DUCK_MS` | 0 | how long `/readyz` answers 503 before the drain |
/// | `GATEWAY_DRAIN_TIMEOUT_MS` | 2000 | the budget for the ends of sessions |
/// | `GATEWAY_CONNECTION_DRAIN_TIMEOUT_MS` | 10000 | the budget for connections, after the sessions |
/// | `GATEWAY_HOOK_DELAY_MS` | 0 | slows down each database transaction, to show a long drain |
/// | `GATEWAY_LINGER_MS` | 0 | how long the process goes on after the shutdown, as one does that uploads its report |
/// | `GATEWAY_THINK_MS` | 0 | the time that the agent takes for an answer |
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: String,
    pub(crate) db: PathBuf,
    pub(crate) lame_duck: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) connection_drain_timeout: Duration,
    pub(crate) hook_delay: Duration,
    pub(crate) linger: Duration,
    pub(crate) think: Duration,
}

impl Config {
    pub(crate) fn from_env() -> Result<Self, BoxError> {
        Ok(Self {
            listen: text("GATEWAY_LISTEN", "127.0.0.1:3000")?,
            db: env::var_os("GATEWAY_DB").unwrap_or_else(|| "sessions.db".into()).into(),
            lame_duck: millis("GATEWAY_LAME_DUCK_MS", 0)?,
            drain_timeout: millis("GATEWAY_DRAIN_TIMEOUT_MS", 2_000)?,
            connection_drain_timeout: millis("GATEWAY_CONNECTION_DRAIN_TIMEOUT_MS", 10_000)?,
            hook_delay: millis("GATEWAY_HOOK_DELAY_MS", 0)?,
            linger: millis("GATEWAY_LINGER_MS", 0)?,
            think: millis("GATEWAY_THINK_MS", 0)?,
        })
    }
}

fn text(name: &str, default: &str) -> Result<String, BoxError> {
    match env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(default.to_owned()),
        Err(error) => Err(format!("{name}: {error}").into()),
    }
}

fn millis(name: &str, default: u64) -> Result<Duration, BoxError> {
    let value = text(name, &default.to_string())?;
    let millis = value.parse().map_err(|error| format!("{name}={value}: {error}"))?;
    Ok(Duration::from_millis(millis))
}
