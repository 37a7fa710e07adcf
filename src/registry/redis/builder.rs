//! [`RedisRegistryBuilder`].

use std::time::Duration;

use redis::aio::ConnectionLike;

use super::{super::RegistryError, RedisRegistry};

/// A busy machine would lose a shorter lease.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// A longer lease is a mistake: a dead process is detected only when its lease expires.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// Builds a [`RedisRegistry`]; from [`RedisRegistry::builder`].
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
#[must_use = "call `connect` or `lazy` to build the registry"]
pub struct RedisRegistryBuilder<C> {
    connection: C,
    settings: Settings,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) prefix: String,
    pub(super) deployment: Option<String>,
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
            deployment: None,
            lease: Duration::from_secs(10),
            command_timeout: Duration::from_millis(200),
        };
        Self { connection, settings }
    }

    /// The prefix of all keys of this deployment. The default is `tower-session-end`.
    ///
    /// All processes that share sessions must use the same prefix, and two deployments must not. It must not contain
    /// braces. The prefix is the hash tag of all keys (`{tower-session-end}:leases`), so that one deployment uses one
    /// slot of a cluster.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// The name of this deployment, `production` for example. There is none by default.
    ///
    /// The name is stored when the prefix is used for the first time. From then on processes with another name, or with
    /// none, get the error [`Invalid`](RegistryError::Invalid). Set it where a database may be copied: a staging system
    /// with a copy of the production database, and with a name of its own, then recovers no session of production and
    /// calls no hook for it. To use the copy, delete its keys, or set another [`prefix`](Self::prefix).
    ///
    /// ```
    /// use redis::{Client, aio::ConnectionManagerConfig};
    /// use tower_session_end::registry::RedisRegistry;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).deployment("staging").lazy();
    /// # Ok(())
    /// # }
    /// ```
    pub fn deployment(mut self, name: impl Into<String>) -> Self {
        self.settings.deployment = Some(name.into());
        self
    }

    /// How long this process may be silent before the others consider it dead and recover its sessions. The default is
    /// 10 s, the minimum 100 ms, the maximum one day.
    ///
    /// The lease is renewed four times in that time. All processes of a deployment must use the same value. The others
    /// also recover the sessions of a live process that is silent for longer (paused, or starved of CPU). An outage of
    /// the server expires no lease.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long one command may take. The default is 200 ms. It must be less than the lease.
    ///
    /// A call without an answer in that time returns [`Unavailable`](RegistryError::Unavailable), and is safe to
    /// repeat. A session start waits at most 250 ms for its record, so a longer timeout helps the other calls only.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.settings.command_timeout = timeout;
        self
    }

    /// Takes the lease now, so that a misconfigured server is reported at start.
    ///
    /// # Errors
    ///
    /// * [`Unavailable`](RegistryError::Unavailable): there was no answer within two seconds, or a transient error.
    /// * [`Invalid`](RegistryError::Invalid): a password is missing or wrong, the user may not run scripts, the server
    ///   is older than 6.0 or evicts keys without an expiry (`maxmemory-policy allkeys-*`, with or without a limit), the
    ///   keys under this prefix were written by another application, another version or another
    ///   [`deployment`](Self::deployment), or a setting of this builder is out of bounds.
    pub async fn connect(self) -> Result<RedisRegistry, RegistryError> {
        let registry = self.lazy();
        registry.enter_at_start().await?;
        Ok(registry)
    }

    /// Does not contact the server yet. The first call that reaches the server takes the lease; until then every call
    /// returns the errors of [`connect`](Self::connect).
    #[must_use]
    pub fn lazy(self) -> RedisRegistry {
        RedisRegistry::new(Box::new(self.connection), self.settings)
    }
}

impl Settings {
    /// How all keys begin. The prefix is the hash tag: all keys are in one slot of a cluster, where one script can change
    /// them together.
    pub(super) fn root(&self) -> String {
        format!("{{{}}}:", self.prefix)
    }

    /// The lease is renewed four times per lease.
    pub(super) fn heartbeat_interval(&self) -> Duration {
        self.lease / 4
    }

    pub(super) fn check(&self) -> Result<(), RegistryError> {
        let Self { prefix, deployment, lease, command_timeout } = self;
        if prefix.is_empty() || prefix.contains(['{', '}']) {
            return Err(RegistryError::invalid(format!("`prefix`: {prefix:?} is empty or contains a brace")));
        }
        if deployment.as_deref() == Some("") {
            return Err(RegistryError::invalid("`deployment` is empty"));
        }
        if *lease < SHORTEST_LEASE || *lease > LONGEST_LEASE {
            let text = format!("`lease`: {lease:?} is not between {SHORTEST_LEASE:?} and {LONGEST_LEASE:?}");
            return Err(RegistryError::invalid(text));
        }
        if command_timeout.is_zero() || command_timeout >= lease {
            let text = format!("`command_timeout`: {command_timeout:?} is zero, or not less than the lease, {lease:?}");
            return Err(RegistryError::invalid(text));
        }
        Ok(())
    }
}
