//! [`RedisRegistry`]: the registry of several machines, on Redis or Valkey.

mod builder;
mod changes;
mod errors;
mod holder;
mod keys;
mod lease;
mod reply;
mod scripts;

use std::{fmt, time::Duration};

use redis::aio::ConnectionLike;
use tokio::sync::Mutex;

pub use self::builder::RedisRegistryBuilder;
use self::{
    builder::Settings,
    changes::batches,
    holder::{Connection, Holder, Place, random},
    keys::Keys,
    lease::Lease,
    scripts::{APPLY, BEAT, Call, TAKE_OVER},
};
use super::{Applied, Change, Orphan, Registry, RegistryError};

/// DOCS
pub struct RedisRegistry {
    settings: Settings,
    keys: Keys,
    instance: String,
    lease: Lease,
    holder: Mutex<Holder>,
}

impl RedisRegistry {
    /// A registry over this connection.
    pub fn builder<C>(connection: C) -> RedisRegistryBuilder<C>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        RedisRegistryBuilder::new(connection)
    }

    /// How this holder is called in the keys: each of its names (`{prefix}:i:<name>`) is this, a colon, and how often it
    /// has lost its lease.
    ///
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    fn new(connection: Connection, settings: Settings) -> Self {
        let instance = random();
        Self {
            keys: Keys::new(&settings.prefix),
            holder: Mutex::new(Holder::new(connection, instance.clone())),
            lease: Lease::default(),
            instance,
            settings,
        }
    }

    fn place(&self) -> Place<'_> {
        let Self { settings, keys, lease, .. } = self;
        Place { settings, keys, lease }
    }

    async fn enter_at_start(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.stand(&self.place(), CONNECT_TIMEOUT).await
    }
}

/// How long `connect` waits: the first call may have to make a connection first.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl Registry for RedisRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let mut holder = self.holder.lock().await;
        let mut applied = Vec::with_capacity(changes.len());
        for batch in batches(&changes, &self.keys)? {
            let answers = holder.run(&self.place(), &APPLY, batch.call).await?;
            if answers.len() != batch.len {
                return Err(RegistryError::unusable("the server answered another number of changes"));
            }
            for (answer, change) in answers.into_iter().zip(&changes[applied.len()..]) {
                applied.push(reply::applied(answer, change)?);
            }
        }
        Ok(applied)
    }

    async fn beat(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.run(&self.place(), &BEAT, Call::default()).await.map(drop)
    }

    async fn take_over(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let mut holder = self.holder.lock().await;
        let this = holder.next_seq();
        let mut orphans = Vec::new();
        while orphans.len() < max {
            let args = vec![
                self.keys.root().to_owned(),
                this.to_string(),
                holder.answered.to_string(),
                (max - orphans.len()).to_string(),
            ];
            let mut answers = holder.run(&self.place(), &TAKE_OVER, Call { keys: Vec::new(), args }).await?.into_iter();
            let more = answers.next().map(reply::text).transpose()?;
            for answer in answers {
                orphans.extend(reply::orphan(answer)?);
            }
            if more.as_deref() != Some("1") {
                break;
            }
        }
        // Only now: until here a caller may have given the call up, and the next one has to tell these again.
        holder.answered = this;
        Ok(orphans)
    }

    async fn leave(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.leave(&self.place()).await
    }

    fn is_current(&self) -> bool {
        self.lease.is_current(self.settings.lease)
    }

    fn beat_every(&self) -> Duration {
        self.settings.beat_every()
    }
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, keys: _, instance, lease: _, holder: _ } = self;
        f.debug_struct("RedisRegistry").field("settings", settings).field("instance", instance).finish_non_exhaustive()
    }
}
