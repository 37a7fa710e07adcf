//! Random sequences of everything that can happen to sessions, against a model that counts the ends owed.
//!
//! A few hundred cases here; `PROPTEST_CASES=10000 cargo test --test model` for more.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    time::Duration,
};

use crate::support::recorder::{Event, Recorder};
use http::{Request, Response};
use proptest::prelude::*;
use tokio::sync::oneshot;
use tower::{Layer, Service, service_fn};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd, SessionGuard};

const IDS: u8 = 4;

#[derive(Clone, Debug)]
enum Step {
    Note(u8),
    End(u8),
    Forget(u8),
    ForgetAll,
    Compact(u8, u8),
    Guard(u8),
    DropGuard(usize),
    /// A request arrives that carries an id, or none.
    Request(Option<u8>),
    /// One of the requests gets its response.
    Respond(usize, Answer),
    /// Time for some hooks.
    Wait(u8),
    /// Longer than the idle time.
    Silence,
    Drain,
    /// A drain that is dropped after a while.
    HalfADrain(u8),
}

/// What a response says.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Nothing,
    Echo,
    Open(u8),
    End,
    CompactInto(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0..IDS;
    let answer = prop_oneof![
        Just(Answer::Nothing),
        Just(Answer::Echo),
        id().prop_map(Answer::Open),
        Just(Answer::End),
        id().prop_map(Answer::CompactInto),
    ];
    prop_oneof![
        6 => id().prop_map(Step::Note),
        4 => id().prop_map(Step::End),
        1 => id().prop_map(Step::Forget),
        1 => Just(Step::ForgetAll),
        4 => (id(), id()).prop_map(|(old, new)| Step::Compact(old, new)),
        2 => id().prop_map(Step::Guard),
        2 => any::<usize>().prop_map(Step::DropGuard),
        4 => proptest::option::weighted(0.8, id()).prop_map(Step::Request),
        4 => (any::<usize>(), answer).prop_map(|(which, answer)| Step::Respond(which, answer)),
        3 => any::<u8>().prop_map(Step::Wait),
        1 => Just(Step::Silence),
        1 => Just(Step::Drain),
        1 => any::<u8>().prop_map(Step::HalfADrain),
    ]
}

fn name(id: u8) -> String {
    format!("s{id}")
}

/// What ought to be: generations are numbered in the order of their births.
#[derive(Debug, Default)]
struct Model {
    births: u64,
    active: BTreeMap<u8, u64>,
    owed: BTreeMap<u64, (u8, EndReason)>,
    stopping: Option<EndReason>,
    /// Ids that a head alone does not wake. They last for 30 s, which no case does but for its silences.
    tombstones: BTreeSet<u8>,
    /// Generations that a request has carried.
    carried: BTreeSet<u64>,
    /// Generations from here on are younger than 30 s.
    young_from: u64,
}

impl Model {
    fn note(&mut self, id: u8) -> u64 {
        if let Some(generation) = self.active.get(&id) {
            return *generation;
        }
        self.births += 1;
        self.active.insert(id, self.births);
        self.tombstones.remove(&id);
        if let Some(reason) = self.stopping {
            self.tombstones.insert(id);
            self.end(id, reason);
        }
        self.births
    }

    /// As a note, by a head in which the id stands.
    fn see(&mut self, id: u8) {
        if self.active.contains_key(&id) || !self.tombstones.contains(&id) {
            self.note(id);
        }
    }

    /// As an end, by the host.
    fn declare(&mut self, id: u8, reason: EndReason) -> bool {
        let ended = self.end(id, reason);
        if ended {
            self.tombstones.insert(id);
        }
        ended
    }

    fn end(&mut self, id: u8, reason: EndReason) -> bool {
        let generation = self.active.remove(&id);
        if let Some(generation) = generation {
            // Its head may be still to come.
            if self.stopping.is_some() && !self.carried.contains(&generation) && generation >= self.young_from {
                self.tombstones.insert(id);
            }
            let twice = self.owed.insert(generation, (id, reason));
            assert!(twice.is_none());
        }
        generation.is_some()
    }

    fn drop_guard(&mut self, id: u8, generation: u64) {
        if self.active.get(&id) == Some(&generation) {
            self.end(id, EndReason::Unknown);
            if !self.carried.contains(&generation) {
                self.tombstones.insert(id);
            }
        }
    }

    /// With `generation`, only that one of `old` counts.
    fn compact(&mut self, old: u8, generation: Option<u64>, new: u8, by_head: bool) -> bool {
        let is_active = self.active.get(&old).is_some_and(|active| generation.is_none_or(|meant| meant == *active));
        if old != new || !is_active {
            if is_active {
                self.declare(old, EndReason::Compaction);
            }
            if by_head {
                self.see(new);
            } else {
                self.note(new);
            }
        }
        is_active
    }

    fn drain(&mut self, reason: EndReason) {
        let reason = *self.stopping.get_or_insert(reason);
        for id in 0..IDS {
            self.end(id, reason);
        }
    }
}

type Host = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request whose response is held back.
struct Held {
    id: Option<u8>,
    generation: Option<u64>,
    answer: oneshot::Sender<Response<String>>,
    exchange: Host,
}

/// Sends a request into the layer, up to where the host holds it.
fn request(sessions: &ActiveSessions, model: &Model, id: Option<u8>) -> Held {
    let (answer, answered) = oneshot::channel::<Response<String>>();
    let mut answered = Some(answered);
    let host = service_fn(move |_: Request<()>| {
        let answered = answered.take();
        async move { Ok::<_, Infallible>(answered.unwrap().await.unwrap()) }
    });
    let mut service = sessions.layer().layer(host);
    let mut head = Request::builder();
    if let Some(id) = id {
        head = head.header("x-session-id", name(id));
    }
    let response = service.call(head.body(()).unwrap());
    let exchange = Box::pin(async move { drop(response.await) });
    let generation = id.and_then(|id| model.active.get(&id).copied());
    Held { id, generation, answer, exchange }
}

async fn respond(model: &mut Model, held: Held, answer: Answer) {
    let Held { id, generation, answer: sender, exchange } = held;
    let response = Response::builder();
    let response = match answer {
        Answer::Nothing => response,
        Answer::Echo => match id {
            Some(id) => response.header("x-session-id", name(id)),
            None => response,
        },
        Answer::Open(new) => response.header("x-session-id", name(new)),
        Answer::End => response.header("x-session-end", "reset"),
        Answer::CompactInto(new) => {
            let response = response.header("x-session-id", name(new));
            response.header("x-session-compacted-from", name(id.unwrap_or(0)))
        }
    };
    match answer {
        Answer::Nothing => {}
        Answer::Echo | Answer::Open(_) => {
            let new = if let Answer::Open(new) = answer { Some(new) } else { id };
            // The id that the request carried is news only if it was unknown then, and never while closing.
            let carried = new.is_some() && new == id;
            if let Some(new) = new
                && !(carried && (generation.is_some() || model.stopping.is_some()))
            {
                model.see(new);
            }
        }
        Answer::End => match (id, generation) {
            (Some(id), Some(generation)) if model.active.get(&id) != Some(&generation) => {}
            (Some(id), _) => drop(model.declare(id, EndReason::Reset)),
            (None, _) => {}
        },
        Answer::CompactInto(new) => {
            let generation = generation.filter(|_| id.is_some());
            model.compact(id.unwrap_or(0), generation, new, true);
        }
    }
    sender.send(response.body(String::new()).unwrap()).unwrap();
    exchange.await;
}

/// Longer than all the waits of a case.
const IDLE: Duration = Duration::from_secs(100);

/// Hooks take between nothing and 70 ms, as the generation likes.
fn handle(recorder: &Recorder, max_sessions: usize) -> ActiveSessions {
    let (starts, ends) = (recorder.clone(), recorder.clone());
    ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(3600))
        .idle_timeout(IDLE)
        .max_sessions(max_sessions)
        .on_session_start(move |start| {
            let starts = starts.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(generation(&start.generation.to_string()) * 7 % 50)).await;
                starts.push(Event::Start(start));
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let ends = ends.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(generation(&end.generation.to_string()) * 31 % 70)).await;
                ends.push(Event::End(end));
            }
        })
        .build()
        .unwrap()
}

fn generation(generation: &str) -> u64 {
    generation.rsplit('-').next().unwrap().parse().unwrap()
}

/// The generations that something keeps busy.
fn busy(guards: &[(u8, u64, SessionGuard)], held: &[Held]) -> BTreeSet<u64> {
    let guarded = guards.iter().map(|(_, generation, _)| *generation);
    guarded.chain(held.iter().filter_map(|held| held.generation)).collect()
}

async fn run(steps: Vec<Step>, max_sessions: usize) {
    let recorder = Recorder::default();
    let sessions = handle(&recorder, max_sessions);
    let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
    let mut model = Model::default();
    let mut guards: Vec<(u8, u64, SessionGuard)> = Vec::new();
    let mut held: Vec<Held> = Vec::new();
    for step in steps {
        let before = model.births;
        match step {
            Step::Note(id) => {
                let births = model.births;
                model.note(id);
                assert_eq!(sessions.note(name(id)).is_new(), model.births > births);
            }
            Step::End(id) => {
                assert_eq!(sessions.end(name(id), EndReason::Deleted), model.declare(id, EndReason::Deleted));
            }
            Step::Forget(id) => {
                let was_active = model.active.remove(&id).is_some();
                assert_eq!(sessions.forget(name(id)), was_active);
                model.tombstones.extend(was_active.then_some(id));
            }
            Step::ForgetAll => {
                assert_eq!(sessions.forget_all(), model.active.len());
                model.active.clear();
            }
            Step::Compact(old, new) => {
                assert_eq!(sessions.compact(name(old), name(new)).ended_old(), model.compact(old, None, new, false));
            }
            Step::Guard(id) => guards.push((id, model.note(id), sessions.guard(name(id)).unwrap())),
            Step::DropGuard(which) if !guards.is_empty() => {
                let (id, generation, guard) = guards.swap_remove(which % guards.len());
                model.drop_guard(id, generation);
                drop(guard);
            }
            Step::Request(id) => {
                let request = request(&sessions, &model, id);
                model.carried.extend(request.generation);
                held.push(request);
            }
            Step::Respond(which, answer) if !held.is_empty() => {
                let held = held.swap_remove(which % held.len());
                respond(&mut model, held, answer).await;
            }
            Step::DropGuard(_) | Step::Respond(..) => {}
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
            Step::Silence => {
                tokio::time::sleep(IDLE + IDLE / 8).await;
                model.tombstones.clear();
                model.young_from = model.births + 1;
                let busy = busy(&guards, &held);
                let silent = |(_, generation): &(&u8, &u64)| !busy.contains(generation);
                let silent: Vec<_> = model.active.iter().filter(silent).map(|(id, _)| *id).collect();
                silent.into_iter().for_each(|id| assert!(model.end(id, EndReason::Idle)));
            }
            Step::Drain => {
                model.drain(EndReason::Restart);
                assert!(sessions.drain(EndReason::Restart).await.is_clean());
            }
            Step::HalfADrain(millis) => {
                model.drain(EndReason::Shutdown);
                let half = Duration::from_millis(millis.into());
                let _ = tokio::time::timeout(half, sessions.drain(EndReason::Shutdown)).await;
            }
        }
        // Whom the cap evicts is its own choice, as long as it is nobody who is busy, and not the newcomer.
        if model.births > before {
            let gone = |id: &&u8| !sessions.contains(name(**id));
            let evicted: Vec<_> = model.active.keys().filter(gone).copied().collect();
            let busy = busy(&guards, &held);
            for id in &evicted {
                let generation = model.active[id];
                assert!(!busy.contains(&generation) && generation != model.births, "{id} was evicted");
                model.end(*id, EndReason::Evicted);
            }
            assert!(evicted.len() <= 1);
        }
        let active: Vec<_> = model.active.keys().map(|id| name(*id)).collect();
        let mut snapshot: Vec<_> = sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
        snapshot.sort();
        assert_eq!(snapshot, active);
        assert_eq!(sessions.len(), active.len());
    }
    driver.abort();
    for (id, generation, guard) in guards {
        model.drop_guard(id, generation);
        drop(guard);
    }
    model.drain(EndReason::Shutdown);
    let report = sessions.finish(async {}).await.report;
    assert!(report.is_clean(), "{report}");
    let total = &report.sessions;
    assert_eq!(total.total(), total.ended + total.forgotten, "{report}");

    // Exactly the ends that are owed, each generation's once, with its reason.
    let mut ended: Vec<_> = recorder
        .ends()
        .iter()
        .map(|end| (generation(&end.generation.to_string()), end.session.id.to_string(), end.reason))
        .collect();
    ended.sort();
    let owed: Vec<_> = model.owed.iter().map(|(generation, (id, reason))| (*generation, name(*id), *reason)).collect();
    assert_eq!(ended, owed);
    // The hooks of one id in the order of its generations, each start before its end.
    for id in 0..IDS {
        let generations: Vec<_> = recorder
            .events()
            .iter()
            .filter(|event| event.id() == name(id))
            .map(|event| match event {
                Event::Start(start) => (generation(&start.generation.to_string()), false),
                Event::End(end) => (generation(&end.generation.to_string()), true),
            })
            .collect();
        assert!(generations.is_sorted(), "{generations:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: crate::failures("model"), max_shrink_iters: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn g01_g02_every_generation_gets_the_end_that_the_model_owes_it(
        steps in proptest::collection::vec(step(), 1..60),
        max_sessions in 2..=usize::from(IDS),
    ) {
        let _alone = crate::ONE_AT_A_TIME.blocking_lock();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(steps, max_sessions));
    }
}
