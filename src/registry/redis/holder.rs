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
    lease::{Lease, Moment},
    reply::{Reply, reply, text},
    scripts::{Call, ENTER, LEAVE, Lua},
};

/// How the incarnation of a store begins that is laid out as here.
const LAYOUT: &str = "1-";

pub(super) type Connection = Box<dyn ConnectionLike + Send + Sync>;

/// What a holder and its scripts share; the registry has it behind a lock, so that there is one script at a time.
pub(super) struct Holder {
    connection: Connection,
    instance: String,
    /// Counts the leases that were taken away: `instance:epoch` is the name that the others know.
    epoch: u64,
    /// Counts the calls, over all epochs.
    seq: u64,
    standing: Standing,
    incarnation: String,
    history: String,
    /// The last take-over whose answer has arrived.
    pub(super) answered: u64,
}

#[derive(Clone, Copy, Debug)]
enum Standing {
    /// With no lease, and with a loss that the caller has not been told yet.
    Outside(Option<Loss>),
    Inside,
    /// It was given back.
    Left,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    Fenced,
    Forgotten,
}

/// What does not change.
pub(super) struct Place<'a> {
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
            standing: Standing::Outside(None),
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
    pub(super) async fn run(&mut self, place: &Place<'_>, lua: &Lua, call: Call) -> Result<Vec<Value>, RegistryError> {
        self.stand(place, place.settings.command_timeout).await?;
        let asked = Moment::now();
        match self.ask(place, lua, call, place.settings.command_timeout).await? {
            Reply::Done(values) => {
                place.lease.renewed(asked);
                return Ok(values);
            }
            Reply::Lost => {}
            Reply::Stale => return Err(RegistryError::unavailable("an answer was lost on the way")),
            Reply::Unusable(why) => return Err(RegistryError::invalid(why)),
            Reply::Fenced => return Err(RegistryError::invalid("an answer that only an enter has")),
        }
        place.lease.lost();
        self.standing = Standing::Outside(Some(Loss::Forgotten));
        Err(self.stand(place, place.settings.command_timeout).await.err().unwrap_or(RegistryError::DataLost))
    }

    /// Takes a lease if there is none.
    pub(super) async fn stand(&mut self, place: &Place<'_>, timeout: Duration) -> Result<(), RegistryError> {
        loop {
            let loss = match self.standing {
                Standing::Inside => return Ok(()),
                Standing::Left => return Err(RegistryError::unavailable("this holder has left")),
                Standing::Outside(loss) => loss,
            };
            place.settings.check()?;
            let asked = Moment::now();
            let call = Call { keys: Vec::new(), args: vec![format!("{LAYOUT}{}", random()), LAYOUT.to_owned()] };
            match self.ask(place, &ENTER, call, timeout).await? {
                Reply::Done(values) => {
                    self.entered(values)?;
                    place.lease.renewed(asked);
                    self.standing = Standing::Inside;
                    match loss {
                        None => {}
                        Some(Loss::Fenced) => return Err(RegistryError::Fenced),
                        Some(Loss::Forgotten) => {
                            place.forgotten.fetch_add(1, Ordering::Relaxed);
                            return Err(RegistryError::DataLost);
                        }
                    }
                }
                // The others have this name's lease and all that it held, also where another loss showed first.
                Reply::Fenced => {
                    self.epoch += 1;
                    self.standing = Standing::Outside(loss.map(|_| Loss::Fenced));
                }
                Reply::Unusable(why) => return Err(RegistryError::invalid(why)),
                Reply::Lost | Reply::Stale => return Err(RegistryError::invalid("an answer that no enter has")),
            }
        }
    }

    /// Gives the lease back, if there is one. Nothing but this works afterwards.
    pub(super) async fn leave(&mut self, place: &Place<'_>) -> Result<(), RegistryError> {
        place.lease.lost();
        let never_entered = self.incarnation.is_empty();
        self.standing = Standing::Left;
        if never_entered {
            return Ok(());
        }
        match self.ask(place, &LEAVE, Call::default(), place.settings.command_timeout).await? {
            Reply::Lost => Err(RegistryError::DataLost),
            _ => Ok(()),
        }
    }

    async fn ask(
        &mut self,
        place: &Place<'_>,
        lua: &Lua,
        call: Call,
        timeout: Duration,
    ) -> Result<Reply, RegistryError> {
        let rid = format!("{}:{}", self.instance, self.epoch);
        let mut whole = Call { keys: place.keys.common(&rid).into(), args: Vec::with_capacity(5 + call.args.len()) };
        whole.keys.extend(call.keys);
        whole.args.extend([
            rid,
            self.incarnation.clone(),
            self.history.clone(),
            self.next_seq().to_string(),
            place.settings.lease.as_millis().to_string(),
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
