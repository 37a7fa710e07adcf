//! One holder: its lease, its losses, and its scripts, which run one at a time.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use redis::{Value, aio::ConnectionLike};

use super::{
    super::{
        RegistryError,
        lease::{DualClock, Lease},
    },
    builder::Settings,
    errors::from_redis,
    recovery::Recovery,
    reply::{Reply, reply, text},
    scripts::{ENTER, RELEASE_LEASE, RedisScript},
    server_clock::ServerClock,
};

/// The version of the key layout: every incarnation begins with it.
const LAYOUT: &str = "3-";

/// How often a call is sent again whose deadline came of an estimate that was too low.
const MAX_LATE: u32 = 2;

/// Where the arguments of a script have the number of the call, and its deadline.
const CALL_NUMBER: usize = 4;
const DEADLINE: usize = 6;

pub(super) type Connection = Box<dyn ConnectionLike + Send + Sync>;

/// The state of a holder. The registry locks it, so that one script runs at a time.
pub(super) struct Holder {
    connection: Connection,
    instance: String,
    /// The number of leases that other holders have recovered; `instance:epoch` is the name of the holder in the keys.
    epoch: u64,
    /// The number of calls, over all epochs.
    call_number: u64,
    lease_state: LeaseState,
    incarnation: String,
    history: String,
    server_clock: Option<ServerClock>,
    has_warned: bool,
    pub(super) recovery: Recovery,
    /// The last recovery call has found nothing and has not read everything.
    pub(super) recovery_was_cut: bool,
}

#[derive(Clone, Copy, Debug)]
enum LeaseState {
    /// No lease. The loss is not reported to the caller yet.
    None(Option<LeaseLoss>),
    Held,
    Released,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum LeaseLoss {
    Fenced,
    DataLost,
}

/// How long a call is waited for.
#[derive(Clone, Copy, Debug)]
struct Limit {
    timeout: Duration,
    at: Instant,
}

impl Limit {
    fn of(timeout: Duration) -> Self {
        Self { timeout, at: Instant::now() + timeout }
    }
}

/// What a script call needs of the registry.
pub(super) struct ScriptContext<'a> {
    pub(super) settings: &'a Settings,
    pub(super) lease: &'a Lease,
    /// The number of data losses so far.
    pub(super) data_losses: &'a AtomicU64,
}

impl Holder {
    pub(super) fn new(connection: Connection, instance: String) -> Self {
        Self {
            connection,
            instance,
            epoch: 0,
            call_number: 0,
            lease_state: LeaseState::None(None),
            incarnation: String::new(),
            history: String::new(),
            server_clock: None,
            has_warned: false,
            recovery: Recovery::default(),
            recovery_was_cut: false,
        }
    }

    /// Runs a script under the lease, which is taken first if there is none. A loss is reported once, as an error,
    /// after a new lease was taken.
    ///
    /// The server refuses the script once this call has been given up: at its timeout, or before, when its caller gives up.
    pub(super) async fn run(
        &mut self,
        context: &ScriptContext<'_>,
        lua: &RedisScript,
        args: Vec<String>,
        given_up_at: Option<Instant>,
    ) -> Result<Vec<Value>, RegistryError> {
        self.ensure_lease(context, context.settings.command_timeout).await?;
        let limit = Limit::of(context.settings.command_timeout);
        let deadline = given_up_at.map_or(limit.at, |at| at.min(limit.at));
        let mut args = self.with_common(context, args);
        let mut late = 0;
        loop {
            if let Some(clock) = self.server_clock {
                args[DEADLINE] = clock.at_least(deadline).to_string();
            }
            let asked = DualClock::now();
            match self.eval(lua, &mut args, limit).await? {
                Reply::Done(values) => {
                    context.lease.renewed(asked);
                    return Ok(values);
                }
                Reply::Lost => break,
                // The answer has the time of the server, so the next deadline is exact.
                Reply::Late if late < MAX_LATE && Instant::now() < deadline => late += 1,
                Reply::Late => return Err(RegistryError::unavailable("the call reached the server too late")),
                Reply::Stale => {
                    return Err(RegistryError::unavailable("an answer was lost on the way; repeat the call"));
                }
                Reply::Invalid(why) => return Err(RegistryError::invalid(why)),
                Reply::Fenced => {
                    return Err(RegistryError::invalid("the server gave an answer that only `enter` gives"));
                }
            }
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
            let args = vec![
                format!("{LAYOUT}{}", random()),
                LAYOUT.to_owned(),
                context.settings.deployment.clone().unwrap_or_default(),
            ];
            let mut args = self.with_common(context, args);
            match self.eval(&ENTER, &mut args, Limit::of(timeout)).await? {
                Reply::Done(values) => {
                    self.entered(values)?;
                    context.lease.renewed(asked);
                    self.lease_state = LeaseState::Held;
                    match loss {
                        None => {}
                        Some(LeaseLoss::Fenced) => return Err(RegistryError::Fenced),
                        Some(LeaseLoss::DataLost) => {
                            context.data_losses.fetch_add(1, Ordering::Relaxed);
                            return Err(RegistryError::DataLost);
                        }
                    }
                }
                // Other holders have recovered this name and its sessions. That outweighs an earlier data loss.
                Reply::Fenced => {
                    self.epoch += 1;
                    self.recovery = Recovery::default();
                    self.lease_state = LeaseState::None(loss.map(|_| LeaseLoss::Fenced));
                }
                Reply::Invalid(why) => return Err(RegistryError::invalid(why)),
                Reply::Lost | Reply::Stale | Reply::Late => {
                    return Err(RegistryError::invalid("the server gave an answer that `enter` never gives"));
                }
            }
        }
    }

    /// Releases the lease, if there is one. Afterwards only this call works.
    pub(super) async fn release_lease(&mut self, context: &ScriptContext<'_>) -> Result<(), RegistryError> {
        context.lease.lost();
        let never_entered = self.incarnation.is_empty();
        self.lease_state = LeaseState::Released;
        if never_entered {
            return Ok(());
        }
        let mut args = self.with_common(context, Vec::new());
        match self.eval(&RELEASE_LEASE, &mut args, Limit::of(context.settings.command_timeout)).await? {
            Reply::Lost => Err(RegistryError::DataLost),
            _ => Ok(()),
        }
    }

    /// Runs a script of an operator, which needs no lease and takes none.
    pub(super) async fn run_as_operator(
        &mut self,
        settings: &Settings,
        lua: &RedisScript,
        args: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Value>, RegistryError> {
        settings.check()?;
        let common = [settings.root(), LAYOUT.to_owned(), settings.deployment.clone().unwrap_or_default()];
        let args: Vec<_> = common.into_iter().chain(args).collect();
        match self.send(lua, &args, Limit::of(settings.command_timeout)).await? {
            Reply::Done(values) => Ok(values),
            Reply::Invalid(why) => Err(RegistryError::invalid(why)),
            Reply::Lost | Reply::Stale | Reply::Late | Reply::Fenced => {
                Err(RegistryError::invalid("the server gave an answer that a script without a lease never gives"))
            }
        }
    }

    /// The arguments of a script of this holder: those that all have, then its own.
    fn with_common(&self, context: &ScriptContext<'_>, args: Vec<String>) -> Vec<String> {
        let common = [
            context.settings.root(),
            format!("{}:{}", self.instance, self.epoch),
            self.incarnation.clone(),
            self.history.clone(),
            // At `CALL_NUMBER`; see `eval`.
            String::new(),
            context.settings.lease.as_millis().to_string(),
            // At `DEADLINE`: none.
            String::new(),
        ];
        common.into_iter().chain(args).collect()
    }

    async fn eval(&mut self, lua: &RedisScript, args: &mut [String], limit: Limit) -> Result<Reply, RegistryError> {
        self.call_number += 1;
        args[CALL_NUMBER] = self.call_number.to_string();
        self.send(lua, args, limit).await
    }

    async fn send(&mut self, lua: &RedisScript, args: &[String], limit: Limit) -> Result<Reply, RegistryError> {
        let left = limit.at.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, lua.run(&mut *self.connection, args)).await {
            Ok(Ok(value)) => {
                let (reply, time) = reply(value)?;
                if let Some(time) = time {
                    self.server_clock = Some(ServerClock::new(time, Instant::now()));
                }
                Ok(reply)
            }
            Ok(Err(error)) => Err(from_redis(error)),
            Err(_) => Err(RegistryError::unavailable(format!("no answer within {:?}", limit.timeout))),
        }
    }

    /// Stores the identity of the store.
    fn entered(&mut self, values: Vec<Value>) -> Result<(), RegistryError> {
        let texts = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let [incarnation, history, policy] = &texts[..] else {
            return Err(RegistryError::invalid("the server gave an answer that `enter` never gives"));
        };
        if (history == "-" || policy == "-") && !self.has_warned {
            self.has_warned = true;
            tracing::warn!(
                name: "session-registry-unwatched",
                "the session registry may not run INFO, so neither a failover to a lagging replica nor a \
                 `maxmemory-policy` that evicts its keys (allkeys-*) is detected: permit INFO to this user"
            );
        }
        self.incarnation.clone_from(incarnation);
        self.history.clone_from(history);
        Ok(())
    }
}

/// 128 random bits, unique to a holder or a store.
pub(super) fn random() -> String {
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}
