//! [`PostgresRegistryBuilder`].

use std::{fmt, sync::Arc, time::Duration};

use sqlx::PgPool;

use super::{
    super::RegistryError,
    PostgresRegistry,
    hook::{NamedHook, PostgresTransactionHook},
};

/// A busy machine would lose a shorter lease.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// A longer lease is a mistake: a dead process is detected only when its lease expires.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// PostgreSQL cuts longer names off.
const LONGEST_NAME: usize = 63;

/// Builds a [`PostgresRegistry`]; from [`PostgresRegistry::builder`].
///
/// ```
/// use std::time::Duration;
/// use sqlx::postgres::PgPoolOptions;
/// use tower_session_end::registry::{PostgresRegistry, Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app")?;
/// let registry = PostgresRegistry::builder(pool)
///     .schema("gateway_sessions")
///     .lease(Duration::from_secs(20))
///     .deployment("production")
///     .lazy();
/// assert_eq!(registry.heartbeat_interval(), Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "call `connect` or `lazy` to build the registry"]
pub struct PostgresRegistryBuilder {
    pool: PgPool,
    settings: Settings,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) schema: String,
    pub(super) deployment: Option<String>,
    pub(super) lease: Duration,
    pub(super) hook: Option<Arc<NamedHook>>,
}

impl PostgresRegistryBuilder {
    pub(super) fn new(pool: PgPool) -> Self {
        let settings =
            Settings { schema: "session_end".to_owned(), deployment: None, lease: Duration::from_secs(10), hook: None };
        Self { pool, settings }
    }

    /// The schema of the tables. The default is `session_end`.
    ///
    /// All processes that share sessions must use the same schema of the same database, and two deployments must not. The schema
    /// is for this crate only. It is created if the user may do that; otherwise create it, and permit the user to use it and to
    /// create tables in it. The name has 1 to 63 bytes, and upper case counts.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.settings.schema = name.into();
        self
    }

    /// The name of this deployment, `production` for example. There is none by default.
    ///
    /// The name is stored when the schema is used for the first time. From then on processes with another name, or with none,
    /// get the error [`Invalid`](RegistryError::Invalid). Set it where a database may be copied: a staging system with a copy of
    /// the production database, and with a name of its own, then recovers no session of production and calls no hook for it. To
    /// use the copy, drop the schema, or set another [`schema`](Self::schema).
    ///
    /// ```
    /// use sqlx::postgres::PgPoolOptions;
    /// use tower_session_end::registry::PostgresRegistry;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app")?;
    /// let registry = PostgresRegistry::builder(pool).deployment("staging").lazy();
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

    /// A hook whose writes are committed together with the record; see [`PostgresTransactionHook`]. A registry has one at most:
    /// a second call replaces the first. The name stands in logs, metrics and reports.
    pub fn transaction_hook(mut self, name: impl Into<String>, hook: impl PostgresTransactionHook) -> Self {
        self.settings.hook = Some(Arc::new(NamedHook::new(name.into(), hook)));
        self
    }

    /// Creates the tables if they are missing, and takes the lease, so that a misconfigured server is reported at start.
    ///
    /// Several processes may do this at the same time.
    ///
    /// # Errors
    ///
    /// * [`Unavailable`](RegistryError::Unavailable): the pool gave no connection within two seconds, or a transient error.
    /// * [`Invalid`](RegistryError::Invalid): the user may not create the schema or use it, the server is a replica, the database
    ///   is not encoded in UTF-8, the schema was made by a newer version or for another [`deployment`](Self::deployment), or a
    ///   setting of this builder is out of bounds.
    ///
    /// The text names the schema.
    pub async fn connect(self) -> Result<PostgresRegistry, RegistryError> {
        let registry = self.lazy();
        registry.enter_at_start().await?;
        Ok(registry)
    }

    /// Does not contact the server yet. The first call that reaches the server creates the tables and takes the lease; until
    /// then every call returns the errors of [`connect`](Self::connect).
    #[must_use]
    pub fn lazy(self) -> PostgresRegistry {
        PostgresRegistry::with(self.pool, self.settings)
    }
}

impl Settings {
    /// The lease is renewed four times per lease.
    pub(super) fn heartbeat_interval(&self) -> Duration {
        self.lease / 4
    }

    pub(super) fn check(&self) -> Result<(), RegistryError> {
        let Self { schema, deployment, lease, hook: _ } = self;
        if schema.is_empty() || schema.len() > LONGEST_NAME || schema.contains('\0') {
            let text =
                format!("`schema`: {schema:?} is empty, longer than {LONGEST_NAME} bytes, or contains a NUL character");
            return Err(RegistryError::invalid(text));
        }
        if deployment.as_deref().is_some_and(|name| name.is_empty() || name.contains('\0')) {
            return Err(RegistryError::invalid("`deployment` is empty or contains a NUL character"));
        }
        if *lease < SHORTEST_LEASE || *lease > LONGEST_LEASE {
            let text = format!("`lease`: {lease:?} is not between {SHORTEST_LEASE:?} and {LONGEST_LEASE:?}");
            return Err(RegistryError::invalid(text));
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schema, deployment, lease, hook } = self;
        f.debug_struct("Settings")
            .field("schema", schema)
            .field("deployment", deployment)
            .field("lease", lease)
            .field("transaction_hook", &hook.as_ref().map(|hook| hook.name()))
            .finish()
    }
}
