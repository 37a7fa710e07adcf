//! A registry in memory, that can be made to fail: what a user's own implementation may look like.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{Applied, Change, EndRecord, Orphan, Record, Registry, RegistryError},
};

/// The store that several holders share.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    active: HashMap<String, Active>,
    ended: HashMap<GenerationId, Ended>,
    alive: BTreeSet<u64>,
    holders: u64,
    /// How often it was emptied.
    incarnation: u64,
    history: History,
}

/// What has ever been in the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) born: BTreeMap<GenerationId, String>,
    /// Removed by a host's word: no end is owed.
    pub(crate) forgotten: BTreeSet<GenerationId>,
    /// Was there when the store was emptied.
    pub(crate) wiped: BTreeSet<GenerationId>,
    /// Those of them that had ended, and waited for somebody to deliver it.
    pub(crate) wiped_ends: BTreeSet<GenerationId>,
    /// Claimed by more than five take-overs.
    pub(crate) given_up: BTreeSet<GenerationId>,
    /// None of the above.
    is_off: bool,
}

struct Active {
    record: Record,
    holders: BTreeSet<u64>,
    requests: u64,
}

#[derive(Clone)]
struct Ended {
    record: Record,
    end: EndRecord,
    claimer: u64,
    tries: u32,
}

/// What is wrong with a holder's way to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// It answers with an error, and does nothing.
    Down,
    /// It does what it is told, and the answer is lost.
    Deaf,
    /// It never answers.
    Hangs,
    /// It takes 400 ms for each call, and does nothing if nobody waits for so long.
    Slow,
    /// It panics.
    Panics,
    /// One answer is missing.
    Short,
    /// It answers, and takes no changes.
    ReadOnly,
    /// Its lease is lost again at every call.
    Fenced,
}

/// One holder; clones are the same one.
#[derive(Clone)]
pub(crate) struct Holder {
    store: Store,
    me: Arc<AtomicU64>,
    incarnation: Arc<AtomicU64>,
    fault: Arc<Mutex<Fault>>,
    doubts: Arc<AtomicBool>,
    /// Calls of `apply`, and the changes in them.
    pub(crate) calls: Arc<AtomicU64>,
    pub(crate) changes: Arc<AtomicU64>,
    pub(crate) beats: Arc<AtomicU64>,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn holder(&self) -> Holder {
        let mut state = self.state();
        let me = state.enter();
        Holder {
            store: self.clone(),
            me: Arc::new(AtomicU64::new(me)),
            incarnation: Arc::new(AtomicU64::new(state.incarnation)),
            fault: Arc::default(),
            doubts: Arc::default(),
            calls: Arc::default(),
            changes: Arc::default(),
            beats: Arc::default(),
        }
    }

    /// The ids on record as active.
    pub(crate) fn active(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.state().active.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// The reasons of the ends that are recorded and not delivered.
    pub(crate) fn owed(&self) -> Vec<EndReason> {
        self.state().ended.values().map(|ended| ended.end.reason).collect()
    }

    /// Forgets everything.
    pub(crate) fn flush(&self) {
        let mut state = self.state();
        let (holders, incarnation) = (state.holders, state.incarnation + 1);
        let mut history = std::mem::take(&mut state.history);
        // Of a holder who has not heard yet that its lease is over, too.
        state.reap();
        history.wiped.extend(state.events());
        history.wiped_ends.extend(state.ended.keys());
        *state = State { holders, incarnation, history, ..State::default() };
    }

    /// A store that remembers nothing of what has been in it.
    pub(crate) fn without_history() -> Self {
        let store = Self::default();
        store.state().history.is_off = true;
        store
    }

    pub(crate) fn history(&self) -> History {
        self.state().history.clone()
    }

    /// The generations that are on record, active or ended.
    pub(crate) fn events(&self) -> BTreeSet<GenerationId> {
        self.state().events()
    }
}

impl History {
    fn forget(&mut self, event: GenerationId) {
        if !self.is_off {
            self.forgotten.insert(event);
        }
    }
}

impl Holder {
    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// It cannot say whether its lease runs.
    pub(crate) fn doubt(&self, on: bool) {
        self.doubts.store(on, Ordering::SeqCst);
    }

    /// Its lease is over, as if its process had died, or had been away for too long.
    pub(crate) fn kill(&self) {
        self.store.state().alive.remove(&self.me.load(Ordering::SeqCst));
    }

    async fn call<T>(&self, call: impl FnOnce(&mut State, u64) -> T) -> Result<T, RegistryError> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::Hangs => return pending().await,
            Fault::Down => return Err(RegistryError::unavailable("down")),
            Fault::Panics => panic!("a registry that panics"),
            Fault::Fenced => return Err(RegistryError::Fenced),
            Fault::Slow => {
                tokio::time::sleep(Duration::from_millis(400)).await;
                // Dead in the meantime?
                if *self.fault.lock().unwrap() == Fault::Hangs {
                    return pending().await;
                }
            }
            Fault::None | Fault::Deaf | Fault::Short | Fault::ReadOnly => {}
        }
        let mut state = self.store.state();
        if self.incarnation.swap(state.incarnation, Ordering::SeqCst) != state.incarnation {
            self.me.store(state.enter(), Ordering::SeqCst);
            return Err(RegistryError::DataLost);
        }
        let me = self.me.load(Ordering::SeqCst);
        if !state.alive.contains(&me) {
            state.reap();
            self.me.store(state.enter(), Ordering::SeqCst);
            return Err(RegistryError::Fenced);
        }
        let answer = call(&mut state, me);
        if fault == Fault::Deaf { Err(RegistryError::unavailable("deaf")) } else { Ok(answer) }
    }
}

impl State {
    fn enter(&mut self) -> u64 {
        self.holders += 1;
        self.alive.insert(self.holders);
        self.holders
    }

    fn events(&self) -> BTreeSet<GenerationId> {
        self.active.values().map(|active| active.record.generation).chain(self.ended.keys().copied()).collect()
    }

    /// Sessions that only the dead hold have ended.
    fn reap(&mut self) {
        for active in self.active.values_mut() {
            active.holders.retain(|holder| self.alive.contains(holder));
        }
        let lost: Vec<_> = self.active.extract_if(|_, active| active.holders.is_empty()).collect();
        for (_, Active { record, requests, .. }) in lost {
            let end = EndRecord::new(EndReason::Lost, None, SystemTime::now(), requests);
            self.ended.insert(record.generation, Ended { record, end, claimer: 0, tries: 0 });
        }
    }

    fn apply(&mut self, change: Change, me: u64) -> Applied {
        match change {
            Change::Hold(record) => {
                let id = record.session.id.to_string();
                let active = self.active.entry(id).or_insert_with(|| Active {
                    record: record.clone(),
                    holders: BTreeSet::new(),
                    requests: 0,
                });
                active.holders.insert(me);
                if active.record.generation == record.generation {
                    if !self.history.is_off {
                        self.history.born.insert(record.generation, record.session.id.to_string());
                    }
                    Applied::Created
                } else {
                    Applied::Joined(active.record.clone())
                }
            }
            Change::Update(record) => {
                if let Some(active) = self.active.get_mut(record.session.id.as_str())
                    && active.record.generation == record.generation
                {
                    active.record.session = record.session;
                }
                Applied::Ok
            }
            Change::Release { id, generation, end } => {
                let held =
                    |active: &&mut Active| active.record.generation == generation && active.holders.contains(&me);
                let Some(active) = self.active.get_mut(id.as_str()).filter(held) else {
                    return self.claimed(generation, me);
                };
                active.holders.remove(&me);
                if active.holders.is_empty() {
                    self.end(id.as_str(), end, me)
                } else {
                    active.requests += end.requests;
                    Applied::HeldElsewhere
                }
            }
            Change::End { id, generation, end } => match self.active.get(id.as_str()) {
                Some(active) if active.record.generation == generation => self.end(id.as_str(), end, me),
                _ => self.claimed(generation, me),
            },
            Change::Delivered { generation } => {
                if self.ended.get(&generation).is_some_and(|ended| ended.claimer == me) {
                    self.ended.remove(&generation);
                }
                Applied::Ok
            }
            Change::Keep { id, generation } => {
                if let Some(active) = self.active.get_mut(id.as_str())
                    && active.record.generation == generation
                {
                    active.holders.remove(&me);
                    if active.holders.is_empty() {
                        self.active.remove(id.as_str());
                        self.history.forget(generation);
                    }
                }
                Applied::Ok
            }
            Change::Forget { id, generation } => {
                if self.active.get(id.as_str()).is_some_and(|active| active.record.generation == generation) {
                    self.active.remove(id.as_str());
                    self.history.forget(generation);
                }
                Applied::Ok
            }
            change => panic!("an unknown change: {change:?}"),
        }
    }

    /// Said before, maybe, and the answer was lost.
    fn claimed(&self, generation: GenerationId, me: u64) -> Applied {
        match self.ended.get(&generation).filter(|ended| ended.claimer == me) {
            Some(ended) => Applied::Owned { requests: ended.end.requests },
            None => Applied::NotFound,
        }
    }

    fn end(&mut self, id: &str, mut end: EndRecord, me: u64) -> Applied {
        let Active { record, requests, .. } = self.active.remove(id).unwrap();
        end.requests += requests;
        let requests = end.requests;
        self.ended.insert(record.generation, Ended { record, end, claimer: me, tries: 0 });
        Applied::Owned { requests }
    }
}

impl Registry for Holder {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.changes.fetch_add(changes.len() as u64, Ordering::SeqCst);
        if *self.fault.lock().unwrap() == Fault::ReadOnly {
            return Err(RegistryError::unavailable("read-only"));
        }
        let mut answers: Vec<_> =
            self.call(|state, me| changes.into_iter().map(|change| state.apply(change, me)).collect()).await?;
        if *self.fault.lock().unwrap() == Fault::Short {
            answers.pop();
        }
        Ok(answers)
    }

    async fn heartbeat(&self) -> Result<(), RegistryError> {
        self.beats.fetch_add(1, Ordering::SeqCst);
        self.call(|_, _| ()).await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.call(|state, me| {
            state.reap();
            let State { ended, alive, history, .. } = state;
            let orphans = ended.values_mut().filter(|ended| !alive.contains(&ended.claimer)).take(max);
            orphans
                .map(|ended| {
                    ended.claimer = me;
                    ended.tries += 1;
                    if ended.tries > 5 {
                        history.given_up.insert(ended.record.generation);
                    }
                    Orphan::new(ended.record.clone(), ended.end.clone(), ended.tries)
                })
                .collect()
        })
        .await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.call(|state, me| {
            state.alive.remove(&me);
        })
        .await
    }

    fn lease_is_valid(&self) -> bool {
        // As a lease that is known to be over.
        let is_alive = self.store.state().alive.contains(&self.me.load(Ordering::SeqCst));
        is_alive && !self.doubts.load(Ordering::SeqCst)
    }

    fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(1)
    }
}
