//! Schedules of the tracker with the steps of the writer, explored with shuttle.
//!
//! The registry is a model. Its calls and their consequences are one step, as under the lock of the calls. It can be
//! down, lose an answer, lose the lease, and hear of other processes.
//!
//! Invariants of every schedule: no generation stays active, no end pending, no job queued, and no entry unwritten.
//! Hooks of the generations of an id do not overlap. Each generation that has started here has one end: here, or by
//! another process that finds its record. One that was forgotten has none.

mod holders;
mod leases;
mod notices;
mod outages;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use shuttle::thread;

use super::{
    PersistConfig, Persister,
    translate::{Next, apply_answer, apply_degraded, apply_notice, apply_skipped, change_of},
};
use crate::{
    observability::ReleaseCause,
    registry::{
        Applied, Change, Durability, EndRecord, Heartbeat, HoldMode, Notice, Orphan, Record, Registry, RegistryError,
    },
    session::{EndReason, GenerationId, Phase, Session, SessionId},
    sync::{AtomicUsize, Mutex, Ordering, lock},
    tasks::Tasks,
    tracker::{
        Activity, Counts, Generation, Job, NoteSource, Noted, Origin, Outbox, OutboxEntry, Outcome, PendingEnd,
        RecordState, Scope, Tracker,
        clock::NEVER,
        shuttle_tests::{assert_nothing_is_left, explore},
    },
};

/// Its calls are made by the [`Model`].
struct NoRegistry;

impl Registry for NoRegistry {
    async fn apply(&self, _: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        Ok(Vec::new())
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        Ok(Heartbeat::default())
    }

    async fn claim_orphans(&self, _: usize) -> Result<Vec<Orphan>, RegistryError> {
        Ok(Vec::new())
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// This process holds it.
    Held,
    /// This process has claimed its end.
    Owned,
    /// Another process ends it.
    Others,
    Removed,
}

/// The model of the registry.
#[derive(Default)]
struct Records {
    status: BTreeMap<GenerationId, (SessionId, Status)>,
    /// Others have ended the first record of this id before this process holds it.
    gone: BTreeSet<SessionId>,
    /// Others hold this id: they have started it.
    joined: BTreeSet<SessionId>,
    /// Others hold this id too.
    shared: BTreeSet<SessionId>,
    is_down: bool,
    /// So many calls are applied, and their answers are lost.
    lost_answers: usize,
    /// So many calls are not applied.
    lost_calls: usize,
}

impl Records {
    fn apply(&mut self, change: &Change) -> Applied {
        match change {
            Change::Hold { record, mode } => self.hold(record, *mode),
            Change::Update(record) => match self.status.get(&record.generation) {
                Some((_, Status::Held)) => Applied::Ok,
                _ => Applied::Gone,
            },
            Change::Release { id, generation, .. } if self.shared.contains(id) => {
                match self.status.insert(*generation, (id.clone(), Status::Others)) {
                    Some((_, Status::Held)) => Applied::HeldElsewhere,
                    other => panic!("released while it is {other:?}"),
                }
            }
            Change::Release { generation, .. } | Change::End { generation, .. } => {
                match self.status.get_mut(generation) {
                    Some((_, status @ (Status::Held | Status::Owned))) => {
                        *status = Status::Owned;
                        Applied::Owned { requests: 0 }
                    }
                    _ => Applied::Gone,
                }
            }
            Change::Forget { generation, .. } => {
                if let Some((_, status @ Status::Held)) = self.status.get_mut(generation) {
                    *status = Status::Removed;
                }
                Applied::Ok
            }
            Change::Delivered { generation } => {
                if let Some((_, status @ Status::Owned)) = self.status.get_mut(generation) {
                    *status = Status::Removed;
                }
                Applied::Ok
            }
            _ => Applied::Ok,
        }
    }

    fn hold(&mut self, record: &Record, mode: HoldMode) -> Applied {
        let id = &record.session.id;
        if let Some((_, status)) = self.status.get(&record.generation) {
            return match status {
                Status::Held | Status::Owned => Applied::Created,
                Status::Others | Status::Removed => Applied::Gone,
            };
        }
        if self.gone.remove(id) {
            self.status.insert(record.generation, (id.clone(), Status::Others));
            return Applied::Gone;
        }
        if mode != HoldMode::Create && self.joined.remove(id) {
            let joined = Record::new(Session::new(id.clone()), GenerationId::new(7, 7), SystemTime::UNIX_EPOCH);
            self.status.insert(joined.generation, (id.clone(), Status::Held));
            return Applied::Joined(joined);
        }
        let is_active =
            |(_, (other, status)): &(&GenerationId, &(SessionId, Status))| other == id && *status == Status::Held;
        if mode != HoldMode::Create
            && let Some((generation, _)) = self.status.iter().find(is_active)
        {
            let joined = Record::new(Session::new(id.clone()), *generation, SystemTime::UNIX_EPOCH);
            return Applied::Joined(joined);
        }
        if mode == HoldMode::Join {
            return Applied::NotFound;
        }
        self.status.insert(record.generation, (id.clone(), Status::Held));
        Applied::Created
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Start,
    StartDone,
    End,
    EndDone,
}

struct Model {
    tracker: Arc<Tracker>,
    persister: Arc<Persister>,
    /// One call at a time. Its answers are applied before the next call.
    records: Mutex<Records>,
    /// Their holds are repeated later.
    held_later: Mutex<Vec<Arc<Generation>>>,
    log: Mutex<Vec<(SessionId, GenerationId, Hook)>>,
    running: AtomicUsize,
    /// So many ends fail.
    failures: AtomicUsize,
    redeliveries: AtomicUsize,
}

impl Model {
    fn new() -> Arc<Self> {
        Self::with(true)
    }

    fn with(hand_over_on_outage: bool) -> Arc<Self> {
        let outbox = Arc::<Outbox>::default();
        let tracker = Arc::new(Tracker::new(true, true, true, Some(Arc::clone(&outbox))));
        let config = PersistConfig {
            registry: Box::new(NoRegistry),
            durability: Durability::Relaxed,
            hand_over_on_outage,
            redeliver: true,
        };
        let persister = Persister::new(config, Arc::clone(&tracker), outbox, Arc::new(Tasks::new().unwrap()));
        Arc::new(Self {
            tracker,
            persister,
            records: Mutex::default(),
            held_later: Mutex::default(),
            log: Mutex::default(),
            running: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            redeliveries: AtomicUsize::new(0),
        })
    }

    fn spawn(self: &Arc<Self>, f: impl FnOnce(&Self) + Send + 'static) {
        self.running.fetch_add(1, Ordering::SeqCst);
        let model = Arc::clone(self);
        thread::spawn(move || {
            f(&model);
            model.running.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn note_as(&self, id: &str, source: NoteSource) -> Option<Arc<Generation>> {
        match self.tracker.note(Session::try_from(id).unwrap(), source, None) {
            Noted::Started(generation) | Noted::AlreadyActive(generation) => Some(generation),
            Noted::Tombstoned | Noted::Closed => None,
        }
    }

    fn note(&self, id: &str) -> Arc<Generation> {
        self.note_as(id, NoteSource::Handle).unwrap()
    }

    fn make(&self, id: &str) -> Arc<Generation> {
        self.note_as(id, NoteSource::Update(Origin::Made)).unwrap()
    }

    fn carry(&self, id: &str) -> Arc<Generation> {
        self.note_as(id, NoteSource::Update(Origin::Carried)).unwrap()
    }

    fn end(&self, id: &str) -> bool {
        self.tracker.end(id.as_bytes(), EndReason::Reset)
    }

    fn compact(&self, old: &str, new: &str) {
        let new = Session::try_from(new).unwrap();
        self.tracker.compact(old.as_bytes(), None, new, NoteSource::Handle, None);
    }

    /// Notes `id` and holds it.
    fn hold(&self, id: &str) -> Arc<Generation> {
        let generation = self.note(id);
        self.write_all();
        generation
    }

    /// `id` starts while the registry is down: it has no record, and its hold is not in the outbox.
    fn start_in_outage(&self, id: &str) -> Arc<Generation> {
        lock(&self.records).is_down = true;
        let generation = self.make(id);
        self.write_all();
        generation
    }

    fn write_all(&self) {
        while self.write() {}
    }

    /// In the order of the writer.
    fn write(&self) -> bool {
        let mut records = lock(&self.records);
        let mut group = self.persister.take_group(2);
        if group.is_empty() {
            self.write_later();
            return !self.persister.outbox.is_empty();
        }
        if records.lost_calls > 0 {
            records.lost_calls -= 1;
            // Each entry has changed its record's state.
            group.iter().for_each(|queued| drop(change_of(&self.persister, &queued.entry)));
            records.is_down = true;
        }
        if records.is_down {
            group.into_iter().for_each(|queued| apply_degraded(&self.persister, queued));
            return true;
        }
        let steps: Vec<_> = group.iter().map(|queued| change_of(&self.persister, &queued.entry)).collect();
        let answers: Vec<_> = steps.into_iter().map(|change| change.map(|change| records.apply(&change))).collect();
        if records.lost_answers > 0 {
            records.lost_answers -= 1;
            records.is_down = true;
            group.into_iter().for_each(|queued| apply_degraded(&self.persister, queued));
            return true;
        }
        for (queued, answer) in group.drain(..).zip(answers) {
            match answer {
                Some(answer) => match apply_answer(&self.persister, queued, &answer) {
                    Next::HoldLater(generation) => lock(&self.held_later).push(generation),
                    Next::Postpone(end) => drop(self.persister.keep_postponed(end)),
                    Next::Nothing | Next::Committed(..) => {}
                },
                None => drop(apply_skipped(&self.tracker, queued.entry)),
            }
        }
        true
    }

    /// The time has come of what is written later.
    fn write_later(&self) {
        for generation in std::mem::take(&mut *lock(&self.held_later)) {
            generation.stop_finding();
            self.persister.outbox.push(OutboxEntry::Hold(generation));
        }
        self.persister.requeue_all_postponed();
    }

    fn go_down(&self) {
        lock(&self.records).is_down = true;
    }

    /// In the order of a reconnect.
    fn come_up(&self) {
        let mut records = lock(&self.records);
        if std::mem::take(&mut records.is_down) {
            self.tracker.rehold_unrecorded();
            self.persister.replay_backlog();
        }
    }

    /// Others end what this process holds, except where a hook is called already.
    fn lose_lease(&self) {
        let mut records = lock(&self.records);
        let log = lock(&self.log).clone();
        for (generation, (_, status)) in &mut records.status {
            if matches!(status, Status::Held | Status::Owned) {
                let is_called = log.iter().any(|(_, other, hook)| other == generation && *hook == Hook::End);
                *status = if is_called { Status::Removed } else { Status::Others };
            }
        }
        self.persister.on_fenced();
    }

    fn lose_records(&self) {
        let mut records = lock(&self.records);
        records.status.retain(|_, (_, status)| *status == Status::Others);
        self.persister.on_data_lost();
    }

    /// Another process ends the session for all. The notice comes with the next heartbeat.
    fn end_elsewhere(&self, id: &str) {
        let mut records = lock(&self.records);
        let mut notices = Vec::new();
        for (generation, (of, status)) in &mut records.status {
            if of.as_bytes() == id.as_bytes() && *status == Status::Held {
                *status = Status::Others;
                // Long enough ago that every second note comes after it, on a slow machine too.
                notices.push(Notice::new(of.clone(), *generation, Duration::from_secs(3600)));
            }
        }
        drop(records);
        thread::yield_now();
        let _call = lock(&self.records);
        notices.into_iter().for_each(|notice| apply_notice(&self.persister, notice));
    }

    /// In the order of a drain.
    fn drain(&self) {
        self.tracker.advance(Phase::Closing, EndReason::Shutdown);
        self.tracker.queue.state().limits.draining = true;
        self.persister.replay_backlog();
        for shard in 0..Tracker::shard_count() {
            self.tracker.sweep(shard, EndReason::Shutdown, false);
        }
    }

    fn is_done(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0
            && self.tracker.awaited() == 0
            && self.tracker.len() == 0
            && self.redeliveries.load(Ordering::SeqCst) == 0
            && self.tracker.queue.is_empty()
            && self.persister.outbox.is_empty()
    }

    fn run_worker(&self) {
        while !self.is_done() {
            if !self.run_jobs() {
                thread::yield_now();
            }
        }
    }

    /// Runs what is queued. Returns false if that is nothing.
    fn run_jobs(&self) -> bool {
        let mut has_run = false;
        loop {
            let job = {
                let mut queue = self.tracker.queue.state();
                self.tracker.queue.pop(&mut queue, NEVER - 1)
            };
            match job {
                Some(Job::Start(generation)) => {
                    self.record(&generation, Hook::Start);
                    thread::yield_now();
                    self.record(&generation, Hook::StartDone);
                    self.tracker.on_start_done(&generation);
                }
                Some(Job::End(generation, end)) => self.run_end(&generation, end),
                None => return has_run,
            }
            has_run = true;
        }
    }

    fn run_end(&self, generation: &Arc<Generation>, end: PendingEnd) {
        let is_first = end.redelivery.is_none();
        {
            // The check of the lease and the call of the hooks are one step: a lost lease cannot come between.
            let _call = lock(&self.records);
            if is_first && !self.persister.lease_allows_delivery(generation) {
                return self.tracker.resolve_released(generation, ReleaseCause::HandedOver);
            }
            if is_first {
                self.record(generation, Hook::End);
            }
        }
        thread::yield_now();
        if !is_first {
            if !self.persister.outbox.is_empty() {
                self.tracker.queue.push_all(vec![Job::End(Arc::clone(generation), end)]);
                return;
            }
            let id = self.tracker.generation_id(generation);
            let is_owned = |(_, status): &(_, Status)| *status == Status::Owned;
            assert!(lock(&self.records).status.get(&id).is_some_and(is_owned), "no process delivers it again");
            self.persister.record_attempt(generation, &end);
            self.persister.record_redelivered(generation);
            self.redeliveries.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        self.record(generation, Hook::EndDone);
        let fail = |n: usize| n.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fail).is_err() {
            self.tracker.on_end_done(generation, Outcome::Ended);
            return;
        }
        self.redeliveries.fetch_add(1, Ordering::SeqCst);
        self.tracker.on_end_done(generation, Outcome::Failed);
        let redelivery = crate::tracker::Redelivery { attempts: 1, hooks: vec![0] };
        let end = PendingEnd { redelivery: Some(Arc::new(redelivery)), ..end };
        self.tracker.queue.push_all(vec![Job::End(Arc::clone(generation), end)]);
    }

    fn record(&self, generation: &Generation, hook: Hook) {
        lock(&self.log).push((generation.id.clone(), self.tracker.generation_id(generation), hook));
    }

    /// Runs a drain beside whatever runs, two workers and a writer until everything is done, and checks it.
    fn check(self: &Arc<Self>) -> Counts {
        self.spawn(Self::drain);
        let threads = [(); 2].map(|()| {
            let model = Arc::clone(self);
            thread::spawn(move || model.run_worker())
        });
        while !self.is_done() {
            self.write();
            thread::yield_now();
        }
        threads.into_iter().for_each(|worker| worker.join().unwrap());
        // What was missed in an outage is written once the registry is back.
        self.come_up();
        self.write_all();
        assert!(self.persister.outbox.is_empty() && self.persister.backlog().is_empty());
        assert_nothing_is_left(&self.tracker);
        let counts = self.tracker.collect_unfinished(false, 0).0;
        self.check_hooks(&counts);
        counts
    }

    fn check_hooks(&self, counts: &Counts) {
        let log = lock(&self.log).clone();
        let status = lock(&self.records).status.clone();
        let mut by_id = BTreeMap::<_, Vec<_>>::new();
        for (id, generation, hook) in log {
            by_id.entry(id).or_default().push((generation, hook));
        }
        let mut endless = 0;
        let mut seen = BTreeSet::new();
        for (id, hooks) in &by_id {
            for run in hooks.chunk_by(|one, other| one.0 == other.0) {
                let generation = run[0].0;
                assert!(seen.insert(generation), "{id}: the generations overlap: {hooks:?}");
                let run: Vec<_> = run.iter().map(|(_, hook)| *hook).collect();
                let (has_start, has_end) = match run[..] {
                    [Hook::Start, Hook::StartDone] => (true, false),
                    [Hook::End, Hook::EndDone] => (false, true),
                    [Hook::Start, Hook::StartDone, Hook::End, Hook::EndDone] => (true, true),
                    _ => panic!("{id}: {hooks:?}"),
                };
                let is_left = |status: &Status| !matches!(status, Status::Removed);
                let by_others = status.get(&generation).is_some_and(|(_, status)| is_left(status));
                assert!(!(has_end && by_others), "{id}: two ends: {hooks:?} {status:?}");
                assert!(has_start || generation == GenerationId::new(7, 7), "{id}: an end without a start: {hooks:?}");
                endless += u64::from(has_start && !has_end && !by_others);
            }
        }
        assert!(endless <= counts.forgotten, "{endless} starts have no end: {by_id:?} {status:?}");
    }

    fn count(&self, hook: Hook) -> usize {
        lock(&self.log).iter().filter(|(_, _, other)| *other == hook).count()
    }
}
