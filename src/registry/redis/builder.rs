//! [`RedisRegistryBuilder`].

use std::time::Duration;

use redis::aio::ConnectionLike;

use super::{super::RegistryError, RedisRegistry};

/// Shorter leases are lost by a busy machine, not by a dead one.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// Longer ones are a mistake: a dead process is found out only when its lease is over.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a [`RedisRegistry`]; from [`RedisRegistry::builder`].
///
/// ```
/// use std::time::Duration;
/// use redis::{Client, aio::ConnectionManagerConfig};
/// use tower_session_end::registry::{RedisRegistry, Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
/// let registry = RedisRegistry::builder(connection)
///     .prefix("gateway")
///     .lease(Duration::from_secs(20))
///     .command_timeout(Duration::from_millis(150))
///     .lazy();
/// assert_eq!(registry.heartbeat_interval(), Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it makes nothing before `connect` or `lazy`"]
pub struct RedisRegistryBuilder<C> {
    connection: C,
    settings: Settings,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) prefix: String,
    pub(super) lease: Duration,
    pub(super) command_timeout: Duration,
}

impl<C> RedisRegistryBuilder<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    pub(super) fn new(connection: C) -> Self {
        let settings = Settings {
            prefix: "tower-session-end".to_owned(),
            lease: Duration::from_secs(10),
            command_timeout: Duration::from_millis(200),
        };
        Self { connection, settings }
    }

    /// What tells this deployment's keys from all others on the server. All that share sessions have the same; two
    /// deployments must not. Without braces. `tower-session-end` unless you say otherwise.
    ///
    /// It becomes the one hash tag of all keys (`{tower-session-end}:lease`): on a cluster, a deployment lives in one
    /// slot, and several can live in several.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// How long this process may be silent before the others take it for dead and take over what it holds; 10 s unless
    /// you say otherwise, 100 ms at least and a day at most. It is renewed four times in that time. The same for all
    /// processes of a deployment.
    ///
    /// A process that is alive but silent for longer (stopped, or starved of CPU) loses its sessions to the others. An
    /// outage of the server itself costs nobody the lease, however long it takes.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long one command may take, 200 ms unless you say otherwise, and less than the lease. A call that gets no
    /// answer in that time is [`Unavailable`](RegistryError::Unavailable), and is safe to repeat.
    ///
    /// A birth waits at most 250 ms for its record; a longer time here serves the other calls only.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.settings.command_timeout = timeout;
        self
    }

    /// Takes the lease now, so that what is wrong with the server shows at start.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](RegistryError::Unavailable) if there is no answer within two seconds, or one that waiting can
    /// help. [`Unusable`](RegistryError::Invalid) if it cannot: a password is missing or wrong, the user may not run
    /// scripts, the server is older than 6.0 or evicts keys that have no expiry, the keys under this prefix are
    /// something else's, or a setting of this builder is out of its bounds.
    pub async fn connect(self) -> Result<RedisRegistry, RegistryError> {
        let registry = self.lazy();
        registry.enter_at_start().await?;
        Ok(registry)
    }

    /// Asks the server nothing yet: the lease is taken by the first call that gets through, and until then every call
    /// is an error. What [`connect`](Self::connect) would complain about is what the calls say then.
    #[must_use]
    pub fn lazy(self) -> RedisRegistry {
        RedisRegistry::new(Box::new(self.connection), self.settings)
    }
}

impl Settings {
    /// How often the lease is renewed.
    pub(super) fn heartbeat_interval(&self) -> Duration {
        self.lease / 4
    }

    pub(super) fn check(&self) -> Result<(), RegistryError> {
        let Self { prefix, lease, command_timeout } = self;
        if prefix.is_empty() || prefix.contains(['{', '}']) {
            return Err(RegistryError::invalid(format!("the prefix {prefix:?} is empty or has a brace in it")));
        }
        if *lease < SHORTEST_LEASE || *lease > LONGEST_LEASE {
            let text = format!("a lease of {lease:?} is not between {SHORTEST_LEASE:?} and {LONGEST_LEASE:?}");
            return Err(RegistryError::invalid(text));
        }
        if command_timeout.is_zero() || command_timeout >= lease {
            let text =
                format!("a command timeout of {command_timeout:?} is zero, or not less than the lease, {lease:?}");
            return Err(RegistryError::invalid(text));
        }
        Ok(())
    }
}
