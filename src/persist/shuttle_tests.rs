//! Schedules of the tracker with the steps of the writer, explored with shuttle.
//!
//! The registry is a model. Its calls and their consequences are one step, as under the lock of the calls. It can be
//! down, lose an answer, lose the lease, and hear of other processes.
//!
//! Invariants of every schedule: no generation stays active, no end pending, no job queued, and no entry unwritten.
//! Hooks of the generations of an id do not overlap. Each generation that has started here has one end: here, or by
//! another process that finds its record. One that was forgotten has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use shuttle::thread;

use super::{
    PersistConfig, Persister,
    translate::{apply_answer, apply_degraded, apply_notice, apply_skipped, change_of},
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
        let mut group = self.persister.outbox.take(2);
        if group.is_empty() {
            return false;
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
                Some(answer) => {
                    let later = apply_answer(&self.persister, queued, &answer);
                    later.into_iter().for_each(|generation| self.persister.outbox.push(OutboxEntry::Hold(generation)));
                }
                None => apply_skipped(&self.tracker, queued.entry),
            }
        }
        true
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
        let counts = self.tracker.collect_unfinished(false).0;
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

/// `claim` races with the writer that sends the record of a generation that has started without the registry.
fn claim_beside_sending(claim: fn(&Model)) -> (Arc<Model>, Counts) {
    let model = Model::new();
    model.start_in_outage("a");
    model.spawn(Model::come_up);
    model.spawn(|model| {
        model.write();
    });
    model.spawn(move |model| claim(model));
    let counts = model.check();
    assert_eq!((model.count(Hook::Start), counts.starts), (1, 1));
    (model, counts)
}

#[test]
fn g15_an_end_beside_the_writer_that_sends_the_record_is_delivered_once() {
    explore(|| {
        let (model, counts) = claim_beside_sending(|model| {
            model.end("a");
        });
        assert!(model.count(Hook::End) as u64 == counts.ended && counts.ended + counts.handed_over == 1, "{counts:?}");
    });
}

#[test]
fn g15_a_forget_beside_the_writer_that_sends_the_record_leaves_no_record() {
    explore(|| {
        let (model, counts) = claim_beside_sending(|model| {
            model.tracker.forget(b"a");
        });
        assert_eq!(model.count(Hook::End) as u64, counts.ended, "{counts:?}");
        if counts.forgotten == 1 {
            assert!(lock(&model.records).status.values().all(|(_, status)| *status == Status::Removed));
        }
    });
}

#[test]
fn g15_a_lost_answer_to_the_hold_of_a_started_session_makes_no_second_end() {
    explore(|| {
        let model = Model::new();
        model.start_in_outage("a");
        lock(&model.records).lost_answers = 1;
        model.spawn(Model::come_up);
        model.spawn(|model| {
            model.write();
            model.end("a");
        });
        model.spawn(Model::come_up);
        model.check();
        assert_eq!(model.count(Hook::Start), 1);
    });
}

#[test]
fn g15_under_overload_each_session_has_one_start_and_one_end() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b", "c"] {
            model.make(id);
        }
        model.spawn(|model| {
            for id in ["b", "a", "d", "c"] {
                model.end(id);
            }
        });
        model.spawn(|model| {
            if let Some(generation) = model.note_as("d", NoteSource::Update(Origin::Carried)) {
                model.tracker.claim(&generation, EndReason::Idle, Scope::Here);
            }
        });
        model.spawn(|model| {
            model.write();
            model.note_as("a", NoteSource::Handle);
        });
        let counts = model.check();
        assert_eq!((model.count(Hook::Start) as u64, model.count(Hook::End) as u64), (counts.starts, counts.starts));
        assert_eq!(counts.ended, counts.starts);
    });
}

/// Another process ends `a` for all, beside `other`.
fn notice_beside(other: fn(&Model)) -> (Arc<Model>, Counts) {
    let model = Model::new();
    let generation = model.hold("a");
    let listener = generation.listen();
    model.spawn(|model| model.end_elsewhere("a"));
    model.spawn(move |model| other(model));
    let counts = model.check();
    assert!(listener.is_cancelled());
    (model, counts)
}

#[test]
fn g16_a_notice_beside_an_end_and_a_running_start_leaves_one_end() {
    explore(|| {
        notice_beside(|model| {
            model.end("a");
        });
    });
}

#[test]
fn g16_a_notice_beside_notes_starts_a_new_generation_in_order() {
    explore(|| {
        notice_beside(|model| {
            model.note_as("a", NoteSource::Handle);
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
    });
}

#[test]
fn g16_a_notice_beside_a_compaction_ends_the_old_session_once() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| model.end_elsewhere("a"));
        model.spawn(|model| model.compact("a", "b"));
        model.check();
    });
}

#[test]
fn g16_a_notice_beside_a_forget_calls_no_end_here_twice() {
    explore(|| {
        notice_beside(|model| {
            model.tracker.forget(b"a");
        });
    });
}

#[test]
fn g16_a_notice_beside_work_and_a_guard_releases_the_session() {
    explore(|| {
        notice_beside(|model| {
            let work = model.tracker.begin_work(b"a");
            if let Some(generation) = &work {
                generation.begin_activity(Activity::Guard);
                thread::yield_now();
                generation.end_activity(Activity::Guard, || false);
                model.tracker.claim(generation, EndReason::Unknown, Scope::Here);
                generation.end_activity(Activity::Work, || false);
            }
        });
    });
}

#[test]
fn g16_the_child_of_a_session_that_others_have_ended_ends_once() {
    explore(|| {
        let model = Model::new();
        model.hold("p");
        model.tracker.note(Session::try_from("c").unwrap().with_parent("p"), NoteSource::Handle, None);
        model.spawn(|model| model.end_elsewhere("p"));
        model.spawn(|model| {
            model.end("c");
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_hold_that_is_answered_gone_calls_no_hook() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b"] {
            lock(&model.records).gone.insert(SessionId::try_from(id).unwrap());
        }
        model.note("a");
        model.carry("b");
        model.spawn(|model| {
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
        });
        model.spawn(|model| {
            model.note_as("a", NoteSource::Handle);
        });
        let counts = model.check();
        assert!(counts.ended_elsewhere >= 2, "{counts:?}");
        assert_eq!(model.count(Hook::Start), model.count(Hook::End));
    });
}

#[test]
fn g16_a_lost_lease_beside_a_running_start_renews_the_session_after_it() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(Model::lose_lease);
        model.spawn(Model::lose_lease);
        let counts = model.check();
        assert!(counts.starts >= model.count(Hook::Start) as u64, "{counts:?}");
    });
}

#[test]
fn g16_a_session_goes_on_with_a_start_and_a_record_after_a_lost_lease_or_a_notice() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b", "c"] {
            model.hold(id);
        }
        // Noted after the end elsewhere, as far as its age says.
        let generation = model.note("b");
        let listener = generation.listen();
        model.spawn(|model| {
            model.end_elsewhere("b");
            model.end_elsewhere("c");
            model.lose_lease();
        });
        model.spawn(|model| {
            model.run_jobs();
            model.write();
        });
        while model.running.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        while model.write() || model.run_jobs() {}
        assert!(model.tracker.find(b"c").is_none(), "others have ended it");
        assert!(listener.is_cancelled(), "the streams of the old generation go on");
        for id in ["a", "b"] {
            let generation = model.tracker.find(id.as_bytes()).unwrap();
            let generation_id = model.tracker.generation_id(&generation);
            assert_eq!(generation.record_state(), RecordState::Held);
            assert_eq!(lock(&model.records).status[&generation_id].1, Status::Held);
            let is_start = |(_, of, hook): &(_, _, Hook)| *of == generation_id && *hook == Hook::StartDone;
            assert!(lock(&model.log).iter().any(is_start), "{id}: no start of the new generation");
        }
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_keeps_a_session_whose_record_may_not_exist() {
    explore(|| {
        let model = Model::new();
        model.start_in_outage("a");
        lock(&model.records).lost_calls = 1;
        model.spawn(|model| {
            model.come_up();
            model.write();
            model.come_up();
            model.lose_lease();
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_session_that_has_started_becomes_no_other() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).joined.insert(SessionId::try_from("a").unwrap());
        model.start_in_outage("a");
        model.spawn(Model::come_up);
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_beside_claims_and_notes_leaves_one_end_of_each_start() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.hold("b");
        model.note("d");
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Handle);
            model.tracker.forget(b"d");
        });
        model.spawn(Model::lose_lease);
        model.spawn(|model| {
            model.write();
            model.compact("b", "c");
        });
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_in_an_outage_that_ends_in_a_drain_leaves_one_end_of_each_start() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.start_in_outage("b");
        model.spawn(|model| {
            model.come_up();
            model.lose_lease();
        });
        model.spawn(|model| {
            model.end("a");
            model.write();
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g15_an_end_that_is_withheld_beside_the_drain_is_resolved() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| {
            model.go_down();
            model.end("a");
            model.write();
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g15_an_end_that_holds_its_record_first_beside_the_drain_is_resolved() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.hold("b");
        model.spawn(|model| {
            // Before the outage: a record that is lost after its end was handed over is lost with it.
            model.lose_records();
            model.write();
            model.go_down();
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
            model.write();
            model.note_as("a", NoteSource::Handle);
            model.come_up();
        });
        model.check();
    });
}

#[test]
fn g15_lost_records_beside_claims_change_no_count() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.note("b");
        model.spawn(Model::lose_records);
        model.spawn(|model| {
            model.end("a");
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended, model.count(Hook::End)), (2, 2, 2), "{counts:?}");
    });
}

#[test]
fn g02_a_released_generation_between_two_others_keeps_the_order() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Update(Origin::Carried));
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
            model.go_down();
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_session_that_others_still_hold_has_no_end_here() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).shared.insert(SessionId::try_from("a").unwrap());
        model.spawn(|model| {
            let a = model.note_as("a", NoteSource::Handle);
            a.iter().for_each(|a| {
                model.tracker.claim(a, EndReason::Idle, Scope::Here);
            });
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.held_elsewhere, model.count(Hook::End)), (counts.starts, 0));
    });
}

#[test]
fn g16_a_session_that_another_process_started_has_no_start_here_and_one_end() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).joined.insert(SessionId::try_from("a").unwrap());
        model.carry("a");
        model.spawn(|model| {
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((model.count(Hook::Start), model.count(Hook::End)), (0, 1));
    });
}

#[test]
fn g17_with_no_replicas_everything_starts_and_ends_here_in_an_outage() {
    explore(|| {
        let model = Model::with(false);
        model.hold("a");
        model.spawn(|model| {
            model.go_down();
            model.end("a");
            model.note_as("a", NoteSource::Update(Origin::Carried));
        });
        model.spawn(|model| {
            model.write();
            model.end("a");
        });
        model.spawn(Model::come_up);
        let counts = model.check();
        assert_eq!((model.count(Hook::Start) as u64, model.count(Hook::End) as u64), (counts.starts, counts.ended));
        assert_eq!(counts.starts, counts.ended, "{counts:?}");
    });
}

#[test]
fn g15_a_redelivery_changes_no_count_of_the_tracker() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.failures.store(1, Ordering::SeqCst);
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.failed, counts.ended + 1), (1, counts.starts), "{counts:?}");
        assert!(lock(&model.records).status.values().all(|(_, status)| *status == Status::Removed));
    });
}

#[test]
fn g16_an_orphaned_end_of_an_active_session_is_delivered_once() {
    explore(|| {
        let model = Model::new();
        let generation = model.hold("a");
        let record = model.tracker.record_of(&generation);
        model.spawn(move |model| {
            let mut records = lock(&model.records);
            let (_, status) = records.status.get_mut(&record.generation).unwrap();
            // A holder that died had ended it for all.
            if *status == Status::Held {
                *status = Status::Owned;
                let end = EndRecord::new(EndReason::Deleted, None, SystemTime::UNIX_EPOCH, 0);
                model.tracker.take_over(Orphan::new(record, end, 1), &Arc::default());
            }
        });
        model.spawn(|model| {
            model.end("a");
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended, model.count(Hook::End)), (1, 1, 1));
    });
}
