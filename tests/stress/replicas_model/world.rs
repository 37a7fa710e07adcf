//! Two replicas, one life of each after the other, and what becomes of them.

use std::{
    collections::BTreeSet,
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
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, ServiceExt, service_fn};
use tower_session_end::{ActiveSessions, EndReason, GenerationId, SessionEnd, SessionGuard, SessionStart};

use super::steps::{CONNECTIONS, DRAIN, IDLE, REPLICAS, Step, name};
use crate::support::recorder::assert_sum;
use crate::support::store::{Fault, Holder, Store};

/// What a hook was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) life: usize,
    pub(crate) id: String,
    pub(crate) event: GenerationId,
    /// `None` for a start.
    pub(crate) end: Option<EndReason>,
}

pub(crate) type Log = Arc<Mutex<Vec<Told>>>;

/// One life of one process.
pub(crate) struct Life {
    number: usize,
    sessions: ActiveSessions,
    holder: Holder,
    /// Hooks of the dead tell nobody.
    is_dead: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
    guards: Vec<SessionGuard>,
    fault: Fault,
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) log: Log,
    pub(crate) max_sessions: usize,
    pub(crate) lives: Vec<Life>,
    /// Lives in which something went wrong: their reports need not be clean.
    pub(crate) troubled: BTreeSet<usize>,
    /// Those of them whose ends may come again: they have crashed, or lost their lease, or their registry.
    pub(crate) repeating: BTreeSet<usize>,
    /// Those of them that may not have recorded what has started: without the registry, or when it was emptied.
    pub(crate) unrecording: BTreeSet<usize>,
    /// Those of them that have missed answers of the registry: they may hold a record and not know of it.
    pub(crate) unheard: BTreeSet<usize>,
    /// Those that may deliver an end twice themselves: they have lost their lease, and recovered it again.
    pub(crate) fenced: BTreeSet<usize>,
    /// Generations that were lost with the only process that knew of them, as the registry did not.
    pub(crate) lost: BTreeSet<GenerationId>,
    /// Generations that had several holders when the registry was emptied, or a notice: each holder may record and end them.
    pub(crate) split: BTreeSet<GenerationId>,
    /// Generations on record when the registry was emptied, and the lives that can record them again.
    pub(crate) emptied: Vec<(GenerationId, BTreeSet<usize>)>,
    /// Ids that a head of a new session carried to a client, and how long the log was before.
    pub(crate) seen: Vec<(String, usize)>,
    pub(crate) number: usize,
    /// Ends that were delivered while the lease was uncertain, and their lives.
    pub(crate) hasty: Arc<Mutex<Vec<(usize, GenerationId)>>>,
    /// Ids that a life has forgotten at some time.
    pub(crate) forgotten: BTreeSet<(usize, String)>,
}

impl World {
    pub(crate) fn new(max_sessions: usize) -> Self {
        let mut world = Self {
            store: Store::default(),
            log: Log::default(),
            max_sessions,
            lives: Vec::new(),
            troubled: BTreeSet::new(),
            repeating: BTreeSet::new(),
            unrecording: BTreeSet::new(),
            unheard: BTreeSet::new(),
            fenced: BTreeSet::new(),
            lost: BTreeSet::new(),
            split: BTreeSet::new(),
            emptied: Vec::new(),
            seen: Vec::new(),
            number: 0,
            hasty: Arc::default(),
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
            move |id: String, event: GenerationId, end| {
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
        let (hasty, watched) = (Arc::clone(&self.hasty), holder.clone());
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .drain_timeout(DRAIN)
            .connection_drain_timeout(CONNECTIONS)
            .idle_timeout(IDLE)
            .max_sessions(self.max_sessions)
            .on_session_start(move |start: SessionStart| {
                tell_start(start.session.id.to_string(), start.generation, None)
            })
            .on_session_end(move |end: SessionEnd| {
                if watched.doubts_claim(end.generation) {
                    hasty.lock().unwrap().push((number, end.generation));
                }
                tell(end.session.id.to_string(), end.generation, Some(end.reason))
            })
            .build()
            .unwrap();
        Life { number, sessions, holder, is_dead, driver: None, guards: Vec::new(), fault: Fault::None }
    }

    pub(crate) async fn step(&mut self, slot: usize, step: Step) {
        let life = &mut self.lives[slot];
        if matches!(step, Step::Stall | Step::Fault(_) | Step::Doubt(_)) && step.is_trouble() {
            self.troubled.insert(life.number);
        }
        if matches!(step, Step::Stall | Step::Fault(Fault::Fenced)) {
            self.repeating.insert(life.number);
            self.fenced.insert(life.number);
        }
        if matches!(step, Step::Fault(_)) && step.is_trouble() {
            self.repeating.insert(life.number);
            self.unrecording.insert(life.number);
            self.unheard.insert(life.number);
        }
        match step {
            Step::Note(id) => drop(life.sessions.note(name(id))),
            Step::Durable(id) => {
                let noted = life.sessions.note(name(id)).recorded();
                tokio::time::timeout(Duration::from_secs(30), noted).await.expect("an answer about the record");
            }
            Step::Head(id) => self.head(slot, id, false).await,
            Step::Request(id) => self.head(slot, id, true).await,
            Step::End(id) => drop(life.sessions.end(name(id), EndReason::Deleted)),
            Step::Forget(id) => {
                life.sessions.forget(name(id));
                self.forgotten.insert((life.number, name(id)));
            }
            Step::Compact(old, new) => drop(life.sessions.compact(name(old), name(new))),
            Step::Guard(id) => life.guards.push(life.sessions.guard(name(id)).unwrap()),
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
            Step::Flush => self.flush(),
        }
    }

    fn flush(&mut self) {
        let notices: BTreeSet<_> = self.store.notices().into_iter().map(|(_, generation)| generation).collect();
        for (generation, owners) in self.store.owners() {
            let lives = self.lives.iter().filter(|life| owners.contains(&life.holder.number()));
            let lives: BTreeSet<_> = lives.map(|life| life.number).collect();
            if lives.len() > 1 {
                self.split.insert(generation);
            }
            self.emptied.push((generation, lives.difference(&self.unheard).copied().collect()));
        }
        self.split.extend(notices);
        // One that has lost its lease, or released the session, and has not heard of it: it records again what others have ended.
        let history = self.store.history();
        for holder in self.lives.iter().map(|life| &life.holder) {
            self.split.extend(history.left.get(&holder.number()).into_iter().flatten());
            let numbers = holder.former_numbers().into_iter().chain([holder.number()]);
            self.split.extend(numbers.filter_map(|number| history.unanswered.get(&number)).flatten());
        }
        let living: Vec<_> = self.lives.iter().map(|life| life.number).collect();
        self.troubled.extend(&living);
        self.unrecording.extend(living);
        self.store.flush();
        self.lose_wiped();
    }

    /// Generations that the registry has forgotten, and that no living process can record again, are lost.
    fn lose_wiped(&mut self) {
        let on_record = self.store.events();
        let living: BTreeSet<_> = self.lives.iter().map(|life| life.number).collect();
        let is_lost = |(generation, lives): &&(GenerationId, BTreeSet<usize>)| {
            lives.is_disjoint(&living) && !on_record.contains(generation)
        };
        self.lost.extend(self.emptied.iter().filter(is_lost).map(|(generation, _)| *generation));
    }

    /// `is_carried`: the request carries the id too.
    async fn head(&mut self, slot: usize, id: u8, is_carried: bool) {
        let life = &self.lives[slot];
        let (is_news, before) = (!life.sessions.contains(name(id)), self.log.lock().unwrap().len());
        let host = service_fn(move |_: Request<()>| {
            let response = Response::builder().header("x-session-id", name(id)).body(Empty::<Bytes>::new());
            ready(Ok::<_, Infallible>(response.unwrap()))
        });
        let begun = Instant::now();
        let request = Request::post("/");
        let request = if is_carried { request.header("x-session-id", name(id)) } else { request };
        let response = life.sessions.layer().layer(host).oneshot(request.body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(begun.elapsed() <= Duration::from_millis(250), "{:?}", begun.elapsed());
        if is_news && !is_carried && life.fault == Fault::None && life.sessions.contains(name(id)) {
            self.seen.push((name(id), before));
        }
    }

    fn crash(&mut self, slot: usize) {
        let next = self.life();
        let life = std::mem::replace(&mut self.lives[slot], next);
        self.troubled.insert(life.number);
        self.repeating.insert(life.number);
        life.is_dead.store(true, Ordering::SeqCst);
        life.driver.iter().for_each(JoinHandle::abort);
        life.holder.kill();
        life.holder.set(Fault::Hangs);
        if self.unrecording.contains(&life.number) {
            self.lose_unrecorded(life.number);
        }
    }

    /// What a process has started without the registry, and not recorded later, is lost with it.
    fn lose_unrecorded(&mut self, life: usize) {
        let on_record = self.store.events();
        let log = self.log.lock().unwrap();
        let ended: BTreeSet<_> = log.iter().filter(|told| told.end.is_some()).map(|told| told.event).collect();
        let started = log.iter().filter(|told| told.life == life && told.end.is_none()).map(|told| told.event);
        self.lost.extend(started.filter(|event| !on_record.contains(event) && !ended.contains(event)));
        drop(log);
        self.lose_wiped();
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
            // The report lists them.
            let on_record = self.store.events();
            let unfinished = report.sessions.unfinished.iter().map(|end| end.generation);
            self.lost.extend(unfinished.filter(|generation| !on_record.contains(generation)));
        }
        if !self.troubled.contains(&life.number) {
            assert!(report.is_clean(), "{report}");
        } else if self.unrecording.contains(&life.number) && !report.is_clean() {
            // It has said so.
            self.lose_wiped();
        }
        life.is_dead.store(true, Ordering::SeqCst);
        life.holder.kill();
        life.holder.set(Fault::Hangs);
    }

    async fn restart(&mut self, slot: usize) {
        let next = self.life();
        let life = std::mem::replace(&mut self.lives[slot], next);
        self.stop(life).await;
    }

    /// Everybody stops, and somebody comes after them until there is nothing left.
    pub(crate) async fn settle(&mut self) {
        for mut life in std::mem::take(&mut self.lives) {
            life.holder.set(Fault::None);
            // A registry that is there again is used again.
            if self.troubled.contains(&life.number) {
                life.holder.doubt(false);
                life.driver = Some(tokio::spawn(life.sessions.shutdown_on(pending::<()>())));
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert!(!life.sessions.is_degraded());
                for session in life.sessions.snapshot() {
                    assert!(life.holder.holds(session.id.as_str()), "no record of {}", session.id.as_str());
                }
            }
            self.stop(life).await;
        }
        for _ in 0..8 {
            let life = self.life();
            let report = life.sessions.recover().await;
            assert!(report.error.is_none() && report.unfinished == 0, "{report}");
            self.stop(life).await;
            if self.store.events().is_empty() {
                assert!(self.store.notices().is_empty(), "{:?}", self.store.notices());
                return;
            }
        }
        panic!("left in the registry: {:?} {:?}", self.store.active(), self.store.owed());
    }
}
