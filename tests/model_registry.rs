//! Random sequences of everything that can happen to sessions of two replicas on one registry, crashes, lost leases and
//! faults of the registry included.
//!
//! A few hundred cases here; `PROPTEST_CASES=10000 cargo test --test model_registry` for more.
//!
//! There is no prediction of each step, but a balance at the end: every generation that was ever on record, or told to
//! a start hook, has an end in one of the lives; two only where something went wrong that explains it; nothing is
//! left in the registry; every report adds up, and no stop takes longer than it may.

#[path = "support/recorder.rs"]
mod recorder;
#[path = "support/store.rs"]
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use proptest::prelude::*;
use recorder::assert_sum;
use store::{Fault, Holder, Store};
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, ServiceExt, service_fn};
use tower_session_end::{ActiveSessions, DrainReport, EndReason, EventId, SessionEnd, SessionGuard, SessionStart};

const IDS: u8 = 3;
const REPLICAS: usize = 2;
const DRAIN: Duration = Duration::from_secs(5);
const CONNECTIONS: Duration = Duration::from_secs(1);
/// Longer than all the waits of most cases.
const IDLE: Duration = Duration::from_secs(100);

#[derive(Clone, Debug)]
enum Step {
    Note(u8),
    /// With a wait for the record.
    Durable(u8),
    /// A response head that carries the id.
    Head(u8),
    End(u8),
    Forget(u8),
    Compact(u8, u8),
    Guard(u8),
    DropGuard(usize),
    Wait(u16),
    Silence,
    Recover,
    /// A driver from here on, or none.
    Drive(bool),
    /// Drained, finished, and started again.
    Restart,
    /// A drain that is dropped after a while.
    HalfADrain(u8),
    /// Gone from one moment to the next, and started again.
    Crash,
    /// Its lease is over, and it does not know.
    Stall,
    Fault(Fault),
    /// It cannot say whether its lease runs, and then it can.
    Doubt(bool),
    /// The store forgets everything.
    Flush,
}

impl Step {
    const fn is_trouble(&self) -> bool {
        matches!(self, Self::Crash | Self::Stall | Self::Fault(_) | Self::Doubt(_) | Self::Flush)
    }
}

fn peace() -> impl Strategy<Value = Step> {
    let id = || 0..IDS;
    prop_oneof![
        6 => id().prop_map(Step::Note),
        3 => id().prop_map(Step::Durable),
        3 => id().prop_map(Step::Head),
        4 => id().prop_map(Step::End),
        1 => id().prop_map(Step::Forget),
        3 => (id(), id()).prop_map(|(old, new)| Step::Compact(old, new)),
        2 => id().prop_map(Step::Guard),
        2 => any::<usize>().prop_map(Step::DropGuard),
        6 => (0..300_u16).prop_map(Step::Wait),
        2 => (0..8000_u16).prop_map(Step::Wait),
        1 => Just(Step::Silence),
        1 => Just(Step::Recover),
        2 => any::<bool>().prop_map(Step::Drive),
        2 => Just(Step::Restart),
        1 => any::<u8>().prop_map(Step::HalfADrain),
    ]
}

fn trouble() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        4 => Just(Fault::None),
        2 => Just(Fault::Down),
        2 => Just(Fault::Deaf),
        1 => Just(Fault::Hangs),
        1 => Just(Fault::Slow),
        1 => Just(Fault::Short),
        1 => Just(Fault::Panics),
    ];
    prop_oneof![
        3 => Just(Step::Crash),
        2 => Just(Step::Stall),
        6 => fault.prop_map(Step::Fault),
        2 => any::<bool>().prop_map(Step::Doubt),
        1 => Just(Step::Flush),
    ]
}

fn name(id: u8) -> String {
    format!("s{id}")
}

/// What a hook was told.
#[derive(Clone, Debug)]
struct Told {
    life: usize,
    id: String,
    event: EventId,
    /// `None` for a start.
    end: Option<EndReason>,
}

type Log = Arc<Mutex<Vec<Told>>>;

/// One life of one process.
struct Life {
    number: usize,
    sessions: ActiveSessions,
    holder: Holder,
    /// Hooks of the dead tell nobody.
    is_dead: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
    guards: Vec<SessionGuard>,
    fault: Fault,
}

struct World {
    store: Store,
    log: Log,
    max_sessions: usize,
    lives: Vec<Life>,
    /// Lives in which something went wrong that explains an end too many.
    troubled: BTreeSet<usize>,
    /// Those of them that went on.
    away: BTreeSet<usize>,
    /// Generations that died with a process that could not record them, or that the store forgot before.
    lost: BTreeSet<EventId>,
    /// Ids that a head of a new session carried to a client, and how long the log was before.
    seen: Vec<(String, usize)>,
    number: usize,
    /// Ids that a life has forgotten at some time.
    forgotten: BTreeSet<(usize, String)>,
}

impl World {
    fn new(max_sessions: usize) -> Self {
        let mut world = Self {
            store: Store::default(),
            log: Log::default(),
            max_sessions,
            lives: Vec::new(),
            troubled: BTreeSet::new(),
            away: BTreeSet::new(),
            lost: BTreeSet::new(),
            seen: Vec::new(),
            number: 0,
            forgotten: BTreeSet::new(),
        };
        world.lives = (0..REPLICAS).map(|_| world.life()).collect();
        world
    }

    /// Hooks take between nothing and 70 ms, as the generation likes.
    fn life(&mut self) -> Life {
        let (number, is_dead, holder) = (self.number, Arc::new(AtomicBool::new(false)), self.store.holder());
        self.number += 1;
        let tell = {
            let (log, is_dead) = (Arc::clone(&self.log), Arc::clone(&is_dead));
            move |id: String, event: EventId, end| {
                let (log, is_dead) = (Arc::clone(&log), Arc::clone(&is_dead));
                let delay = event.to_string().bytes().map(u64::from).sum::<u64>() % 70;
                async move {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                    if is_dead.load(Ordering::SeqCst) {
                        pending::<()>().await;
                    }
                    log.lock().unwrap().push(Told { life: number, id, event, end });
                }
            }
        };
        let tell_start = tell.clone();
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .drain_timeout(DRAIN)
            .connection_drain_timeout(CONNECTIONS)
            .idle_timeout(IDLE)
            .max_sessions(self.max_sessions)
            .on_session_start(move |start: SessionStart| tell_start(start.session.id.to_string(), start.event_id, None))
            .on_session_end(move |end: SessionEnd| tell(end.session.id.to_string(), end.event_id, Some(end.reason)))
            .build()
            .unwrap();
        Life { number, sessions, holder, is_dead, driver: None, guards: Vec::new(), fault: Fault::None }
    }

    async fn step(&mut self, slot: usize, step: Step) {
        let life = &mut self.lives[slot];
        if matches!(step, Step::Stall | Step::Fault(_) | Step::Doubt(_)) {
            self.troubled.insert(life.number);
            self.away.insert(life.number);
        }
        match step {
            Step::Note(id) => drop(life.sessions.note(name(id))),
            Step::Durable(id) => {
                let noted = life.sessions.note(name(id)).durable();
                tokio::time::timeout(Duration::from_secs(30), noted).await.expect("an answer about the record");
            }
            Step::Head(id) => self.head(slot, id).await,
            Step::End(id) => drop(life.sessions.end(name(id), EndReason::Deleted)),
            Step::Forget(id) => {
                life.sessions.forget(name(id));
                self.forgotten.insert((life.number, name(id)));
            }
            Step::Compact(old, new) => drop(life.sessions.compact(name(old), name(new))),
            Step::Guard(id) => life.guards.push(life.sessions.guard(name(id))),
            Step::DropGuard(which) if !life.guards.is_empty() => {
                drop(life.guards.swap_remove(which % life.guards.len()));
            }
            Step::DropGuard(_) => {}
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
            Step::Silence => tokio::time::sleep(IDLE + IDLE / 8).await,
            Step::Recover => {
                let begun = Instant::now();
                let report = life.sessions.recover().await;
                assert!(begun.elapsed() <= Duration::from_secs(10), "{report}");
            }
            Step::Drive(on) => {
                life.driver.take().iter().for_each(JoinHandle::abort);
                if on {
                    life.driver = Some(tokio::spawn(life.sessions.shutdown_on(pending::<()>())));
                }
            }
            Step::Restart => self.restart(slot).await,
            Step::HalfADrain(millis) => {
                let half = Duration::from_millis(millis.into());
                let _ = tokio::time::timeout(half, life.sessions.drain(EndReason::Shutdown)).await;
            }
            Step::Crash => self.crash(slot),
            Step::Stall => life.holder.kill(),
            Step::Doubt(on) => life.holder.doubt(on),
            Step::Fault(fault) => {
                life.fault = fault;
                life.holder.set(fault);
            }
            Step::Flush => {
                let living: BTreeSet<_> = self.lives.iter().map(|life| life.number).collect();
                let on_record = self.store.events();
                // Of the dead nobody is left to record it again; and after a fault, whoever had joined may not know.
                let goes_on = |event: &EventId, id: &String| {
                    let log = self.log.lock().unwrap();
                    let starter = log.iter().find(|told| told.event == *event && told.end.is_none());
                    let starter = starter.and_then(|told| self.lives.iter().find(|life| life.number == told.life));
                    self.away.is_empty()
                        && starter.is_some_and(|life| self.troubled.is_empty() || life.sessions.contains(id))
                };
                let born = self.store.history().born;
                let gone: Vec<_> =
                    born.iter().filter(|(event, id)| !goes_on(event, id)).map(|(event, _)| *event).collect();
                self.lost.extend(gone.into_iter().filter(|event| on_record.contains(event)));
                self.troubled.extend(living);
                self.store.flush();
            }
        }
    }

    async fn head(&mut self, slot: usize, id: u8) {
        let life = &self.lives[slot];
        let (is_news, before) = (!life.sessions.contains(name(id)), self.log.lock().unwrap().len());
        let host = service_fn(move |_: Request<()>| {
            let response = Response::builder().header("x-session-id", name(id)).body(Empty::<Bytes>::new());
            ready(Ok::<_, Infallible>(response.unwrap()))
        });
        let begun = Instant::now();
        let response = life.sessions.layer().layer(host).oneshot(Request::post("/").body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(begun.elapsed() <= Duration::from_millis(250), "{:?}", begun.elapsed());
        if is_news && life.fault == Fault::None && life.sessions.contains(name(id)) {
            self.seen.push((name(id), before));
        }
    }

    fn crash(&mut self, slot: usize) {
        let next = self.life();
        let life = std::mem::replace(&mut self.lives[slot], next);
        self.troubled.insert(life.number);
        life.is_dead.store(true, Ordering::SeqCst);
        life.driver.iter().for_each(JoinHandle::abort);
        life.holder.kill();
        life.holder.set(Fault::Hangs);
        let (on_record, history) = (self.store.events(), self.store.history());
        let forgotten = &history.forgotten;
        let log = self.log.lock().unwrap();
        let ended = |event: EventId| log.iter().any(|told| told.event == event && told.end.is_some());
        for told in log.iter().filter(|told| told.end.is_none()) {
            let is_forgotten =
                forgotten.contains(&told.event) || self.forgotten.contains(&(told.life, told.id.clone()));
            if told.life == life.number && !on_record.contains(&told.event) && !ended(told.event) && !is_forgotten {
                self.lost.insert(told.event);
            }
        }
        // It had joined, and the store has been emptied since.
        let had = |(event, id): &(&EventId, &String)| {
            history.wiped.contains(event) && !on_record.contains(event) && life.sessions.contains(id)
        };
        self.lost.extend(history.born.iter().filter(had).map(|(event, _)| *event));
    }

    /// Stops a life in good order, and what is left of it is everybody's.
    async fn stop(&mut self, mut life: Life) {
        life.driver.take().iter().for_each(JoinHandle::abort);
        let begun = Instant::now();
        let shutdown = tokio::spawn(life.sessions.shutdown_on(ready(EndReason::Restart)));
        let server = async { drop(shutdown.await) };
        let finished = life.sessions.finish(server).await;
        let (took, report) = (begun.elapsed(), finished.report);
        assert!(took <= DRAIN + CONNECTIONS + Duration::from_millis(50), "{took:?}: {report}");
        for report in [&report.drain, &report.sessions] {
            assert_sum(report);
            assert_eq!(report.failed, 0, "{report}");
        }
        assert!(life.sessions.is_empty());
        if self.troubled.contains(&life.number) {
            self.mourn(&report.sessions);
        } else {
            assert!(report.is_clean(), "{report}");
        }
        life.is_dead.store(true, Ordering::SeqCst);
        life.holder.kill();
        life.holder.set(Fault::Hangs);
    }

    /// What a stop could not deliver, and could not write down either: it has said so.
    fn mourn(&mut self, report: &DrainReport) {
        let on_record = self.store.events();
        self.lost.extend(report.unfinished.iter().map(|end| end.event_id).filter(|event| !on_record.contains(event)));
        if report.handed_over > 0 {
            // To nobody, where the store has been emptied and could not be filled again.
            let wiped = self.store.history().wiped;
            self.lost.extend(wiped.into_iter().filter(|event| !on_record.contains(event)));
        }
    }

    async fn restart(&mut self, slot: usize) {
        let next = self.life();
        let life = std::mem::replace(&mut self.lives[slot], next);
        self.stop(life).await;
    }

    /// Everybody stops, and somebody comes after them until there is nothing left.
    async fn settle(&mut self) {
        for mut life in std::mem::take(&mut self.lives) {
            // A registry that is there again is used again.
            if self.troubled.contains(&life.number) {
                life.holder.set(Fault::None);
                life.holder.doubt(false);
                life.driver = Some(tokio::spawn(life.sessions.shutdown_on(pending::<()>())));
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert!(!life.sessions.is_degraded());
            }
            self.stop(life).await;
        }
        for _ in 0..8 {
            let life = self.life();
            let report = life.sessions.recover().await;
            assert!(report.error.is_none() && report.unfinished == 0, "{report}");
            self.stop(life).await;
            if self.store.events().is_empty() {
                return;
            }
        }
        panic!("left in the registry: {:?} {:?}", self.store.active(), self.store.owed());
    }

    fn check(&self, steps: &[(usize, Step)]) {
        let log = self.log.lock().unwrap();
        let history = self.store.history();
        let mut told = BTreeMap::<EventId, (Vec<usize>, Vec<usize>)>::new();
        for told_now in log.iter() {
            let (starts, ends) = told.entry(told_now.event).or_default();
            if told_now.end.is_some() { ends.push(told_now.life) } else { starts.push(told_now.life) }
        }
        // The start of what was forgotten is nobody's to wait for.
        let is_forgotten = |event: &EventId| {
            let ids: BTreeSet<_> = log.iter().filter(|told| told.event == *event).map(|told| &told.id).collect();
            self.forgotten.iter().any(|(_, id)| ids.contains(id))
        };
        let in_peace = steps.iter().all(|(_, step)| !step.is_trouble());
        let about = |event: &EventId| format!("{event}: {:?}\n{history:?}\n{log:#?}", told.get(event));
        for event in told.keys().chain(history.born.keys()) {
            let excused = history.forgotten.contains(event)
                || history.given_up.contains(event)
                || self.lost.contains(event)
                || history.wiped_ends.contains(event)
                // Never on record, or no longer: its process has forgotten it, or died before it was recorded again.
                || (!history.born.contains_key(event) && is_forgotten(event))
                || (history.wiped.contains(event) && (!told.contains_key(event) || is_forgotten(event)));
            let (starts, ends) = told.get(event).cloned().unwrap_or_default();
            assert!(!ends.is_empty() || excused, "no end for {}", about(event));
            // One whose own process was away, or did not know what had become of its record, may be recorded again.
            let was_away = starts.iter().any(|life| self.away.contains(life));
            let unexplained = ends.iter().filter(|life| !self.troubled.contains(life)).count();
            assert!(
                (unexplained <= 1 || was_away) && (!in_peace || ends.len() <= 1),
                "{} ends for {}",
                ends.len(),
                about(event)
            );
            assert!(starts.len() <= 1, "{} starts for {}", starts.len(), about(event));
            let may_be_silent = !in_peace || is_forgotten(event) || history.forgotten.contains(event);
            assert!(may_be_silent || starts.len() == 1, "no start for {}", about(event));
        }
        if in_peace {
            assert!(self.lost.is_empty());
        }
        let only_crashes = steps.iter().all(|(_, step)| !step.is_trouble() || matches!(step, Step::Crash));
        let forgets = |id: &str| {
            let is_forgotten = |(_, step): &(usize, Step)| matches!(step, Step::Forget(other) if name(*other) == id);
            steps.iter().any(is_forgotten)
        };
        if only_crashes {
            assert!(self.lost.is_empty(), "{:?}", self.lost);
            for (id, from) in self.seen.iter().filter(|(id, _)| !forgets(id)) {
                let has_end = log[*from..].iter().any(|told| told.id == *id && told.end.is_some());
                assert!(has_end, "a client saw {id}, and it has no end: {log:#?}");
            }
        }
        // In one life, no end comes before its start.
        for (at, end) in log.iter().enumerate().filter(|(_, told)| told.end.is_some()) {
            let late = log[at..].iter().any(|told| (told.life, told.event, told.end) == (end.life, end.event, None));
            assert!(!late, "the start of {end:?} came after it");
        }
    }
}

async fn run(steps: Vec<(usize, Step)>, max_sessions: usize) {
    let mut world = World::new(max_sessions);
    for (slot, step) in &steps {
        world.step(*slot, step.clone()).await;
    }
    world.settle().await;
    world.check(&steps);
}

fn run_paused(steps: Vec<(usize, Step)>, max_sessions: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(steps, max_sessions));
}

fn steps(step: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<(usize, Step)>> {
    proptest::collection::vec((0..REPLICAS, step), 1..50)
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, max_shrink_iters: 10_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn g01_g16_in_peace_every_generation_of_two_replicas_gets_exactly_one_start_and_one_end(
        steps in steps(peace()),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }

    #[test]
    fn g15_after_crashes_everything_that_a_client_saw_has_an_end(
        steps in steps(prop_oneof![8 => peace().boxed(), 1 => Just(Step::Crash).boxed()]),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }

    #[test]
    fn g15_g16_g17_whatever_goes_wrong_no_end_is_lost_and_one_too_many_is_explained(
        steps in steps(prop_oneof![4 => peace().boxed(), 1 => trouble().boxed()]),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }
}

#[test]
fn debug_case() {
    use Step::*;
    run_paused(
        vec![
            (1, Note(2)),
            (0, Crash),
            (0, Guard(2)),
            (0, End(2)),
            (0, Durable(2)),
            (1, Durable(1)),
            (0, Compact(0, 0)),
            (1, Crash),
            (1, Head(2)),
            (1, Crash),
            (1, Crash),
            (0, Note(1)),
            (1, Durable(0)),
            (1, Note(0)),
        ],
        2,
    );
}
