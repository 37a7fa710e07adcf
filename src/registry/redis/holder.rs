//! One holder: its lease, its losses, and one script at a time.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use redis::{Value, aio::ConnectionLike};

use super::{
    super::RegistryError,
    builder::Settings,
    errors::from_redis,
    keys::Keys,
    lease::{DualClock, Lease},
    reply::{Reply, reply, text},
    scripts::{ENTER, RELEASE_LEASE, RedisScript, ScriptArgs},
};

/// How the incarnation of a store begins that is laid out as here.
const LAYOUT: &str = "2-";

pub(super) type Connection = Box<dyn ConnectionLike + Send + Sync>;

/// What a holder and its scripts share; the registry has it behind a lock, so that there is one script at a time.
pub(super) struct Holder {
    connection: Connection,
    instance: String,
    /// Counts the leases that were taken away: `instance:epoch` is the name that the others know.
    epoch: u64,
    /// Counts the calls, over all epochs.
    seq: u64,
    lease_state: LeaseState,
    incarnation: String,
    history: String,
    /// The last take-over whose answer has arrived.
    pub(super) answered: u64,
}

#[derive(Clone, Copy, Debug)]
enum LeaseState {
    /// With no lease, and with a loss that the caller has not been told yet.
    None(Option<LeaseLoss>),
    Held,
    /// It was given back.
    Released,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum LeaseLoss {
    Fenced,
    DataLost,
}

/// What does not change.
pub(super) struct ScriptContext<'a> {
    pub(super) settings: &'a Settings,
    pub(super) keys: &'a Keys,
    pub(super) lease: &'a Lease,
    /// Counts how often the store has forgotten something.
    pub(super) forgotten: &'a AtomicU64,
}

impl Holder {
    pub(super) fn new(connection: Connection, instance: String) -> Self {
        Self {
            connection,
            instance,
            epoch: 0,
            seq: 0,
            lease_state: LeaseState::None(None),
            incarnation: String::new(),
            history: String::new(),
            answered: 0,
        }
    }

    /// A number for a call, higher than all before.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Carries out a script under the lease, which is taken first where there is none. A loss that shows is told once,
    /// as an error, when there is a lease again.
    pub(super) async fn run(
        &mut self,
        context: &ScriptContext<'_>,
        lua: &RedisScript,
        call: ScriptArgs,
    ) -> Result<Vec<Value>, RegistryError> {
        self.ensure_lease(context, context.settings.command_timeout).await?;
        let asked = DualClock::now();
        match self.eval(context, lua, call, context.settings.command_timeout).await? {
            Reply::Done(values) => {
                context.lease.renewed(asked);
                return Ok(values);
            }
            Reply::Lost => {}
            Reply::Stale => return Err(RegistryError::unavailable("an answer was lost on the way")),
            Reply::Invalid(why) => return Err(RegistryError::invalid(why)),
            Reply::Fenced => return Err(RegistryError::invalid("an answer that only an enter has")),
        }
        context.lease.lost();
        self.lease_state = LeaseState::None(Some(LeaseLoss::DataLost));
        Err(self.ensure_lease(context, context.settings.command_timeout).await.err().unwrap_or(RegistryError::DataLost))
    }

    /// Takes a lease if there is none.
    pub(super) async fn ensure_lease(
        &mut self,
        context: &ScriptContext<'_>,
        timeout: Duration,
    ) -> Result<(), RegistryError> {
        loop {
            let loss = match self.lease_state {
                LeaseState::Held => return Ok(()),
                LeaseState::Released => return Err(RegistryError::unavailable("this holder has left")),
                LeaseState::None(loss) => loss,
            };
            context.settings.check()?;
            let asked = DualClock::now();
            let call = ScriptArgs {
                keys: vec![context.keys.old_incarnation()],
                args: vec![format!("{LAYOUT}{}", random()), LAYOUT.to_owned()],
            };
            match self.eval(context, &ENTER, call, timeout).await? {
                Reply::Done(values) => {
                    self.entered(values)?;
                    context.lease.renewed(asked);
                    self.lease_state = LeaseState::Held;
                    match loss {
                        None => {}
                        Some(LeaseLoss::Fenced) => return Err(RegistryError::Fenced),
                        Some(LeaseLoss::DataLost) => {
                            context.forgotten.fetch_add(1, Ordering::Relaxed);
                            return Err(RegistryError::DataLost);
                        }
                    }
                }
                // The others have this name's lease and all that it held, also where another loss showed first.
                Reply::Fenced => {
                    self.epoch += 1;
                    self.lease_state = LeaseState::None(loss.map(|_| LeaseLoss::Fenced));
                }
                Reply::Invalid(why) => return Err(RegistryError::invalid(why)),
                Reply::Lost | Reply::Stale => return Err(RegistryError::invalid("an answer that no enter has")),
            }
        }
    }

    /// Gives the lease back, if there is one. Nothing but this works afterwards.
    pub(super) async fn release_lease(&mut self, context: &ScriptContext<'_>) -> Result<(), RegistryError> {
        context.lease.lost();
        let never_entered = self.incarnation.is_empty();
        self.lease_state = LeaseState::Released;
        if never_entered {
            return Ok(());
        }
        match self.eval(context, &RELEASE_LEASE, ScriptArgs::default(), context.settings.command_timeout).await? {
            Reply::Lost => Err(RegistryError::DataLost),
            _ => Ok(()),
        }
    }

    async fn eval(
        &mut self,
        context: &ScriptContext<'_>,
        lua: &RedisScript,
        call: ScriptArgs,
        timeout: Duration,
    ) -> Result<Reply, RegistryError> {
        let rid = format!("{}:{}", self.instance, self.epoch);
        let mut whole =
            ScriptArgs { keys: context.keys.common(&rid).into(), args: Vec::with_capacity(5 + call.args.len()) };
        whole.keys.extend(call.keys);
        whole.args.extend([
            rid,
            self.incarnation.clone(),
            self.history.clone(),
            self.next_seq().to_string(),
            context.settings.lease.as_millis().to_string(),
        ]);
        whole.args.extend(call.args);
        match tokio::time::timeout(timeout, lua.run(&mut *self.connection, &whole)).await {
            Ok(Ok(value)) => reply(value),
            Ok(Err(error)) => Err(from_redis(error)),
            Err(_) => Err(RegistryError::unavailable(format!("no answer within {timeout:?}"))),
        }
    }

    /// Remembers which store it is.
    fn entered(&mut self, values: Vec<Value>) -> Result<(), RegistryError> {
        let texts = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let [incarnation, history] = &texts[..] else {
            return Err(RegistryError::invalid("an answer that no enter has"));
        };
        if history == "-" && self.history != "-" {
            tracing::warn!(
                name: "session-registry-unwatched",
                "the session registry may not run INFO: a failover to a server that lagged behind will not be noticed"
            );
        }
        self.incarnation.clone_from(incarnation);
        self.history.clone_from(history);
        Ok(())
    }
}

/// 128 bits that no other holder and no other store has.
pub(super) fn random() -> String {
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}
