//! A registry in memory that can be made to fail: an example of a user's own implementation.
//!
//! It also checks the duties of its caller: at most 1,000 changes a call, no id and no generation in two of them, one call of
//! `apply` at a time. A violation panics, in the call and in every later use of the store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tower_session_end::{
    EndReason, GenerationId, SessionId,
    registry::{
        Applied, Change, DeadLetter, EndRecord, Heartbeat, HoldMode, Notice, Orphan, Record, Registry, RegistryError,
    },
};

/// The most notices in one heartbeat, and the most changes in one call.
const MAX: usize = 1000;

/// The claimer of a dead letter, and of what the next recovery claims: no holder.
const NONE: u64 = 0;

/// The store that several holders share.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By id, the oldest first.
    active: HashMap<String, Vec<Active>>,
    ended: BTreeMap<GenerationId, Ended>,
    notices: Vec<(u64, SessionId, GenerationId, Instant)>,
    alive: BTreeSet<u64>,
    /// Without a lease, and not adopted yet.
    dead: BTreeSet<u64>,
    holders: u64,
    /// How often it was emptied.
    incarnation: u64,
    history: History,
    /// With a transaction hook: what it has written.
    ledger: Option<Ledger>,
    /// What a caller did wrong first.
    violation: Option<String>,
}

/// What has ever been in the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Each generation that was ever on record, with its id.
    pub(crate) recorded: BTreeMap<GenerationId, String>,
    /// Removed by `Keep` or `Forget`: no end is owed.
    pub(crate) forgotten: BTreeSet<GenerationId>,
    /// On record when the store was emptied.
    pub(crate) wiped: BTreeSet<GenerationId>,
    /// Those of them that had ended.
    pub(crate) wiped_ends: BTreeSet<GenerationId>,
    /// What each holder that has lost its lease held, had claimed, or had a notice about then.
    pub(crate) left: BTreeMap<u64, BTreeSet<GenerationId>>,
    /// What a holder held when it lost its lease, and may not have known that it held: it may record it again later.
    pub(crate) unsettled: BTreeSet<GenerationId>,
    /// What each holder has changed without an answer: it may not know that it has released it.
    pub(crate) unanswered: BTreeMap<u64, BTreeSet<GenerationId>>,
    /// None of the above.
    is_off: bool,
}

/// The tables of a transaction hook. It increments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) starts: BTreeMap<GenerationId, u32>,
    pub(crate) ends: BTreeMap<GenerationId, u32>,
    /// It refuses the ends of ids that begin with `bad`.
    pub(crate) refuses: bool,
}

impl Ledger {
    fn end(&mut self, record: &Record) -> Result<(), String> {
        if self.refuses && record.session.id.as_str().starts_with("bad") {
            return Err("refused".to_owned());
        }
        *self.ends.entry(record.generation).or_default() += 1;
        Ok(())
    }
}

struct Active {
    record: Record,
    holders: BTreeSet<u64>,
    /// Holders that have released it.
    released: BTreeSet<u64>,
    requests: u64,
}

struct Ended {
    record: Record,
    end: EndRecord,
    /// Of an adopted holder: its adopter.
    claimer: u64,
    attempts: u32,
    /// The claimer knows of it.
    is_known: bool,
    /// A dead letter, with the last error.
    error: Option<String>,
    /// The transaction hook has run.
    is_committed: bool,
}

/// What is wrong with a holder's way to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// It answers with an error, and does nothing.
    Down,
    /// It does what it is asked, and the answer is lost.
    Deaf,
    /// It never answers.
    Hangs,
    /// It takes 400 ms for each call, and does nothing if the call is dropped before.
    Slow,
    /// It panics.
    Panics,
    /// One answer is missing.
    Short,
    /// It answers, and takes no changes.
    ReadOnly,
    /// Its lease is lost again at every call.
    Fenced,
    /// A call meets a concurrent one, and nothing is applied: twice before the first call that succeeds, once before the
    /// second, and so on.
    Conflict,
}

/// One holder; clones are the same one.
#[derive(Clone)]
pub(crate) struct Holder {
    store: Store,
    me: Arc<AtomicU64>,
    /// The numbers that it had before.
    former: Arc<Mutex<Vec<u64>>>,
    incarnation: Arc<AtomicU64>,
    fault: Arc<Mutex<Fault>>,
    doubts: Arc<AtomicBool>,
    conflicts: Arc<AtomicU64>,
    is_applying: Arc<AtomicBool>,
    /// Calls of `apply`, and the changes in them.
    pub(crate) calls: Arc<AtomicU64>,
    pub(crate) changes: Arc<AtomicU64>,
    pub(crate) beats: Arc<AtomicU64>,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.0.lock().unwrap();
        if let Some(violation) = state.violation.clone() {
            drop(state);
            panic!("{violation}");
        }
        state
    }

    /// A violation of the trait's contract by its caller. The caller catches panics of the store, so that it is kept.
    fn violated(&self, text: &str) -> ! {
        let mut state = self.state();
        state.violation = Some(format!("the caller of the registry has violated its contract: {text}"));
        drop(state);
        drop(self.state());
        unreachable!()
    }

    pub(crate) fn holder(&self) -> Holder {
        let mut state = self.state();
        let me = state.enter();
        Holder {
            store: self.clone(),
            me: Arc::new(AtomicU64::new(me)),
            former: Arc::default(),
            incarnation: Arc::new(AtomicU64::new(state.incarnation)),
            fault: Arc::default(),
            doubts: Arc::default(),
            conflicts: Arc::default(),
            is_applying: Arc::default(),
            calls: Arc::default(),
            changes: Arc::default(),
            beats: Arc::default(),
        }
    }

    /// The ids on record as active, once for each generation.
    pub(crate) fn active(&self) -> Vec<String> {
        let state = self.state();
        let active = state.active.values().flatten();
        let mut ids: Vec<_> = active.map(|active| active.record.session.id.to_string()).collect();
        ids.sort();
        ids
    }

    /// The reasons of the ends that are recorded and not delivered, except of dead letters.
    pub(crate) fn owed(&self) -> Vec<EndReason> {
        let state = self.state();
        state.ended.values().filter(|ended| ended.error.is_none()).map(|ended| ended.end.reason).collect()
    }

    /// The calls that were counted for each end that is owed.
    pub(crate) fn attempts(&self) -> Vec<u32> {
        self.state().ended.values().map(|ended| ended.attempts).collect()
    }

    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        let letter = |ended: &Ended| {
            let error = ended.error.clone()?;
            Some(DeadLetter::new(ended.record.clone(), ended.end.clone(), ended.attempts, error))
        };
        self.state().ended.values().filter_map(letter).collect()
    }

    /// As an operator who asks for a delivery of this dead letter. False if there is none.
    pub(crate) fn redeliver(&self, generation: GenerationId) -> bool {
        let mut state = self.state();
        let letter = state.ended.get_mut(&generation).filter(|ended| ended.error.is_some());
        letter.is_some_and(|ended| {
            (ended.error, ended.attempts) = (None, 0);
            true
        })
    }

    /// The ids and generations of all notices.
    pub(crate) fn notices(&self) -> Vec<(String, GenerationId)> {
        self.state().notices.iter().map(|(_, id, generation, _)| (id.to_string(), *generation)).collect()
    }

    /// Who can record each generation again if it is lost: its holders, or the claimer of its end.
    pub(crate) fn owners(&self) -> BTreeMap<GenerationId, BTreeSet<u64>> {
        self.state().owners()
    }

    /// A store with a transaction hook.
    pub(crate) fn with_ledger() -> Self {
        let store = Self::default();
        store.state().ledger = Some(Ledger::default());
        store
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.state().ledger.clone().unwrap()
    }

    /// Whether the transaction hook refuses the ends of ids that begin with `bad`.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.state().ledger.as_mut().unwrap().refuses = refuses;
    }

    /// Forgets everything.
    pub(crate) fn flush(&self) {
        let mut state = self.state();
        // Of holders that do not know yet that their leases are over, too.
        state.adopt(NONE);
        let (holders, incarnation) = (state.holders, state.incarnation + 1);
        let mut history = std::mem::take(&mut state.history);
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

    /// The generations that are on record: active, ended, or dead letters.
    pub(crate) fn events(&self) -> BTreeSet<GenerationId> {
        self.state().events()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(violation) = self.0.lock().ok().and_then(|state| state.violation.clone())
        {
            panic!("{violation}");
        }
    }
}

impl History {
    fn record(&mut self, record: &Record) {
        if !self.is_off {
            self.recorded.insert(record.generation, record.session.id.to_string());
        }
    }

    fn answer(&mut self, holder: u64, generations: BTreeSet<GenerationId>, is_answered: bool) {
        if !self.is_off {
            let unanswered = self.unanswered.entry(holder).or_default();
            if is_answered {
                unanswered.retain(|generation| !generations.contains(generation));
            } else {
                unanswered.extend(generations);
            }
        }
    }

    fn forget(&mut self, generation: GenerationId) {
        if !self.is_off {
            self.forgotten.insert(generation);
        }
    }
}

/// One call of `apply`.
struct Applying<'a>(&'a AtomicBool);

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Holder {
    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// As in [`Store::owners`]. Another one after each lost lease.
    pub(crate) fn number(&self) -> u64 {
        self.me.load(Ordering::SeqCst)
    }

    /// The numbers that it had before it lost a lease, or its records.
    pub(crate) fn former_numbers(&self) -> Vec<u64> {
        self.former.lock().unwrap().clone()
    }

    fn enter(&self, state: &mut State) {
        let before = self.me.swap(state.enter(), Ordering::SeqCst);
        self.former.lock().unwrap().push(before);
    }

    /// Whether it holds an active record of this id, or a notice about one waits for it.
    pub(crate) fn holds(&self, id: &str) -> bool {
        let (state, me) = (self.store.state(), self.number());
        let is_held = |active: &Active| active.holders.contains(&me);
        state.active.get(id).is_some_and(|all| all.iter().any(is_held))
            || state.notices.iter().any(|(holder, of, ..)| *holder == me && of.as_str() == id)
    }

    /// Whether it has claimed this end and cannot say that its lease runs.
    pub(crate) fn doubts_claim(&self, generation: GenerationId) -> bool {
        let is_valid = self.lease_is_valid();
        !is_valid && self.store.state().claimed(generation, self.number()).is_some()
    }

    /// It cannot say whether its lease runs.
    pub(crate) fn doubt(&self, on: bool) {
        self.doubts.store(on, Ordering::SeqCst);
    }

    /// Its lease is over, as if its process had died, or had been away for too long.
    pub(crate) fn kill(&self) {
        self.store.state().leave(self.me.load(Ordering::SeqCst));
    }

    fn check_duties(&self, changes: &[Change]) {
        if changes.len() > MAX {
            self.store.violated(&format!("{} changes in one call", changes.len()));
        }
        let (mut ids, mut generations) = (HashSet::new(), HashSet::new());
        for change in changes {
            let (id, generation) = subject(change);
            if !generations.insert(generation) || id.is_some_and(|id| !ids.insert(id)) {
                self.store.violated(&format!("an id or a generation twice in one call: {change:?}, in {changes:#?}"));
            }
        }
    }

    async fn call<T>(&self, call: impl FnOnce(&mut State, u64) -> T) -> Result<T, RegistryError> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::Hangs => return pending().await,
            Fault::Down => return Err(RegistryError::unavailable("down")),
            Fault::Panics => panic!("a registry that panics"),
            Fault::Fenced => self.kill(),
            Fault::Conflict => {
                if ![2, 4].contains(&(self.conflicts.fetch_add(1, Ordering::SeqCst) % 5)) {
                    return Err(RegistryError::Conflict);
                }
            }
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
            self.enter(&mut state);
            return Err(RegistryError::DataLost);
        }
        let me = self.me.load(Ordering::SeqCst);
        if !state.alive.contains(&me) {
            // Others have recovered it by now, or a holder that has died since.
            state.adopt(NONE);
            self.enter(&mut state);
            return Err(RegistryError::Fenced);
        }
        let answer = call(&mut state, me);
        if fault == Fault::Deaf { Err(RegistryError::unavailable("deaf")) } else { Ok(answer) }
    }
}

/// The id, where the change has one, and the generation.
fn subject(change: &Change) -> (Option<&SessionId>, GenerationId) {
    match change {
        Change::Hold { record, .. } | Change::Update(record) => (Some(&record.session.id), record.generation),
        Change::Release { id, generation, .. }
        | Change::End { id, generation, .. }
        | Change::Keep { id, generation }
        | Change::Forget { id, generation }
        | Change::Acknowledge { id, generation } => (Some(id), *generation),
        Change::Attempted { generation, .. }
        | Change::Delivered { generation }
        | Change::Commit { generation }
        | Change::DeadLetter { generation, .. } => (None, *generation),
        change => panic!("an unknown change: {change:?}"),
    }
}

impl State {
    fn enter(&mut self) -> u64 {
        self.holders += 1;
        self.alive.insert(self.holders);
        self.holders
    }

    fn leave(&mut self, holder: u64) {
        if self.alive.remove(&holder) {
            self.dead.insert(holder);
            if !self.history.is_off {
                let owned = self.owners().into_iter().filter(|(_, owners)| owners.contains(&holder));
                let owned = owned.map(|(generation, _)| generation);
                // Its notices are dropped once it is adopted.
                let noticed =
                    self.notices.iter().filter(|(of, ..)| *of == holder).map(|(_, _, generation, _)| *generation);
                let owned: BTreeSet<_> = owned.chain(noticed).collect();
                let unanswered = self.history.unanswered.get(&holder).into_iter().flatten();
                self.history.unsettled.extend(unanswered.filter(|generation| owned.contains(generation)));
                self.history.left.insert(holder, owned);
            }
        }
    }

    fn owners(&self) -> BTreeMap<GenerationId, BTreeSet<u64>> {
        let active = self.active.values().flatten();
        let held = active.map(|active| (active.record.generation, active.holders.clone()));
        let claimed = self.ended.iter().map(|(generation, ended)| (*generation, BTreeSet::from([ended.claimer])));
        held.chain(claimed).collect()
    }

    fn events(&self) -> BTreeSet<GenerationId> {
        let active = self.active.values().flatten().map(|active| active.record.generation);
        active.chain(self.ended.keys().copied()).collect()
    }

    /// Everything of the dead is this holder's: what they held alone has ended, and what they had claimed is claimed by it.
    fn adopt(&mut self, me: u64) {
        let dead = std::mem::take(&mut self.dead);
        for ended in self.ended.values_mut().filter(|ended| ended.error.is_none()) {
            if ended.claimer == NONE || dead.contains(&ended.claimer) {
                (ended.claimer, ended.is_known) = (me, false);
            }
        }
        if dead.is_empty() {
            return;
        }
        self.notices.retain(|(holder, ..)| !dead.contains(holder));
        let mut lost = Vec::new();
        self.active.retain(|_, all| {
            for active in &mut *all {
                active.holders.retain(|holder| !dead.contains(holder));
                active.released.retain(|holder| !dead.contains(holder));
            }
            lost.extend(all.extract_if(.., |active| active.holders.is_empty()));
            !all.is_empty()
        });
        for Active { record, requests, .. } in lost {
            let end = EndRecord::new(EndReason::Lost, None, SystemTime::now(), requests);
            let ended =
                Ended { record, end, claimer: me, attempts: 0, is_known: false, error: None, is_committed: false };
            self.ended.insert(ended.record.generation, ended);
        }
    }

    fn active(&mut self, id: &SessionId, generation: GenerationId) -> Option<&mut Active> {
        self.active.get_mut(id.as_str())?.iter_mut().find(|active| active.record.generation == generation)
    }

    fn held(&mut self, id: &SessionId, generation: GenerationId, me: u64) -> Option<&mut Active> {
        self.active(id, generation).filter(|active| active.holders.contains(&me))
    }

    fn take(&mut self, id: &SessionId, generation: GenerationId) -> Option<Active> {
        let all = self.active.get_mut(id.as_str())?;
        let at = all.iter().position(|active| active.record.generation == generation)?;
        let active = all.remove(at);
        if all.is_empty() {
            self.active.remove(id.as_str());
        }
        Some(active)
    }

    /// The end of this generation, if this holder has claimed it.
    fn claimed(&mut self, generation: GenerationId, me: u64) -> Option<&mut Ended> {
        self.ended.get_mut(&generation).filter(|ended| ended.claimer == me)
    }

    fn apply(&mut self, change: Change, me: u64) -> Applied {
        match change {
            Change::Hold { record, mode } => self.hold(record, mode, me),
            Change::Update(record) => match self.held(&record.session.id, record.generation, me) {
                Some(active) => {
                    active.record.session = record.session;
                    Applied::Ok
                }
                None => Applied::Gone,
            },
            Change::Release { id, generation, end } => {
                let Some(active) = self.active(&id, generation) else { return self.owned(generation, me) };
                if !active.holders.remove(&me) {
                    let has_released = active.released.contains(&me);
                    return if has_released { Applied::HeldElsewhere } else { Applied::Gone };
                }
                active.released.insert(me);
                if active.holders.is_empty() {
                    self.end(&id, generation, end, me)
                } else {
                    active.requests += end.requests;
                    Applied::HeldElsewhere
                }
            }
            Change::End { id, generation, end } => {
                self.notify(&id, generation, me);
                self.end(&id, generation, end, me)
            }
            Change::Attempted { generation, attempts } => {
                if let Some(ended) = self.claimed(generation, me) {
                    ended.attempts = attempts;
                }
                Applied::Ok
            }
            Change::Delivered { generation } => {
                let committed = self.commit(generation, me);
                // The only place where an ended record is removed.
                if committed == Applied::Ok && self.claimed(generation, me).is_some() {
                    self.ended.remove(&generation);
                }
                committed
            }
            Change::Commit { generation } => self.commit(generation, me),
            Change::DeadLetter { generation, error } => {
                if let Some(ended) = self.claimed(generation, me) {
                    (ended.error, ended.claimer) = (Some(error), NONE);
                }
                Applied::Ok
            }
            Change::Keep { id, generation } => {
                if let Some(active) = self.held(&id, generation, me) {
                    active.holders.remove(&me);
                    active.released.insert(me);
                    if active.holders.is_empty() {
                        self.take(&id, generation);
                        self.history.forget(generation);
                    }
                }
                Applied::Ok
            }
            Change::Forget { id, generation } => {
                self.notify(&id, generation, me);
                if self.take(&id, generation).is_some() {
                    self.history.forget(generation);
                }
                Applied::Ok
            }
            Change::Acknowledge { generation, .. } => {
                self.notices.retain(|(holder, _, of, _)| (*holder, *of) != (me, generation));
                Applied::Ok
            }
            change => panic!("an unknown change: {change:?}"),
        }
    }

    /// Calls the transaction hook, if there is one that has not run.
    fn commit(&mut self, generation: GenerationId, me: u64) -> Applied {
        let mut ledger = self.ledger.take();
        let mut answer = Applied::Ok;
        if let (Some(ledger), Some(ended)) = (&mut ledger, self.claimed(generation, me))
            && !ended.is_committed
        {
            match ledger.end(&ended.record) {
                Ok(()) => ended.is_committed = true,
                Err(error) => answer = Applied::Failed(error),
            }
        }
        self.ledger = ledger;
        answer
    }

    fn hold(&mut self, record: Record, mode: HoldMode, me: u64) -> Applied {
        let (id, generation) = (record.session.id.clone(), record.generation);
        if let Some(active) = self.active(&id, generation) {
            active.record = record;
            active.add(me);
            return Applied::Created;
        }
        if self.claimed(generation, me).is_some() {
            return Applied::Created;
        }
        let has_notice = self.notices.iter().any(|(holder, _, of, _)| (*holder, *of) == (me, generation));
        if has_notice || self.ended.contains_key(&generation) {
            return Applied::Gone;
        }
        let all = self.active.entry(id.to_string()).or_default();
        // Each has a holder that is not adopted.
        if mode != HoldMode::Create
            && let Some(active) = all.first_mut()
        {
            active.add(me);
            return Applied::Joined(active.record.clone());
        }
        if mode == HoldMode::Join {
            return Applied::NotFound;
        }
        self.history.record(&record);
        if let Some(ledger) = &mut self.ledger {
            *ledger.starts.entry(generation).or_default() += 1;
        }
        all.push(Active { record, holders: BTreeSet::from([me]), released: BTreeSet::new(), requests: 0 });
        Applied::Created
    }

    fn owned(&mut self, generation: GenerationId, me: u64) -> Applied {
        let claimed = self.claimed(generation, me);
        claimed.map_or(Applied::Gone, |ended| Applied::Owned { requests: ended.end.requests })
    }

    fn end(&mut self, id: &SessionId, generation: GenerationId, mut end: EndRecord, me: u64) -> Applied {
        if let Some(Active { record, requests, .. }) = self.take(id, generation) {
            end.requests += requests;
            let ended =
                Ended { record, end, claimer: me, attempts: 0, is_known: true, error: None, is_committed: false };
            self.ended.insert(generation, ended);
        }
        self.owned(generation, me)
    }

    /// Leaves a notice for each other living holder of the session.
    fn notify(&mut self, id: &SessionId, generation: GenerationId, me: u64) {
        let Some(active) = self.active(id, generation) else { return };
        let others: Vec<_> = active.holders.iter().copied().filter(|holder| *holder != me).collect();
        let others = others.into_iter().filter(|holder| self.alive.contains(holder));
        self.notices.extend(others.map(|holder| (holder, id.clone(), generation, Instant::now())));
    }

    fn heartbeat(&self, me: u64) -> Heartbeat {
        let mine = || self.notices.iter().filter(|(holder, ..)| *holder == me);
        let notice = |(_, id, generation, at): &(u64, SessionId, GenerationId, Instant)| {
            Notice::new(id.clone(), *generation, at.elapsed())
        };
        let dead_letters = self.ended.values().filter(|ended| ended.error.is_some()).count() as u64;
        Heartbeat::new(mine().take(MAX).map(notice).collect(), mine().nth(MAX).is_some(), dead_letters)
    }

    fn orphans(&mut self, max: usize, me: u64) -> Vec<Orphan> {
        self.adopt(me);
        let mine = self.ended.values().filter(|ended| ended.claimer == me && !ended.is_known);
        mine.take(max).map(|ended| Orphan::new(ended.record.clone(), ended.end.clone(), ended.attempts)).collect()
    }
}

impl Active {
    fn add(&mut self, holder: u64) {
        self.released.remove(&holder);
        self.holders.insert(holder);
    }
}

impl Registry for Holder {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.check_duties(&changes);
        if self.is_applying.swap(true, Ordering::SeqCst) {
            self.store.violated("a call of `apply` while another one is in flight");
        }
        let _applying = Applying(&self.is_applying);
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.changes.fetch_add(changes.len() as u64, Ordering::SeqCst);
        if *self.fault.lock().unwrap() == Fault::ReadOnly {
            return Err(RegistryError::unavailable("read-only"));
        }
        let generations: BTreeSet<_> = changes.iter().map(|change| subject(change).1).collect();
        let is_answered = ![Fault::Deaf, Fault::Short].contains(&*self.fault.lock().unwrap());
        let apply = |state: &mut State, me| {
            state.history.answer(me, generations, is_answered);
            changes.into_iter().map(|change| state.apply(change, me)).collect()
        };
        let mut answers: Vec<_> = self.call(apply).await?;
        if *self.fault.lock().unwrap() == Fault::Short {
            answers.pop();
        }
        Ok(answers)
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.beats.fetch_add(1, Ordering::SeqCst);
        self.call(|state, me| state.heartbeat(me)).await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let (me, orphans) = self.call(|state, me| (me, state.orphans(max, me))).await?;
        // The answer arrives: until then a later call returns them again.
        let mut state = self.store.state();
        for orphan in &orphans {
            if let Some(ended) = state.claimed(orphan.record.generation, me) {
                ended.is_known = true;
            }
        }
        drop(state);
        Ok(orphans)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.call(|state, me| state.leave(me)).await
    }

    fn transaction_hook(&self) -> Option<&str> {
        self.store.state().ledger.is_some().then_some("ledger")
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
