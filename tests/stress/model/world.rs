//! A handle and its host: does each step to both the handle and the model.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::{Layer, Service, service_fn};
use tower_session_end::{
    ActiveSessions, EndReason, Session, SessionEnd, SessionGuard, SessionStart, SessionUpdate, WorkGuard,
};

use super::{
    steps::{Answer, DOUBT, IDLE, Settings, Step, name},
    truth::{Model, Number},
};

/// A moment of a generation's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    StartBegan,
    StartDone,
    EndBegan,
    EndDone(EndReason),
}

/// The moments of all hooks, in order, with the id and the generation.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(String, Number, Moment)>>>);

impl Log {
    fn push(&self, id: &impl ToString, number: Number, moment: Moment) {
        self.0.lock().unwrap().push((id.to_string(), number, moment));
    }
}

/// A request whose response is held back.
struct Held {
    id: Option<u8>,
    number: Option<Number>,
    /// The claims before it.
    began: u64,
    answer: oneshot::Sender<Response<String>>,
    exchange: Pin<Box<dyn Future<Output = ()> + Send>>,
}

pub(crate) struct World {
    settings: Settings,
    begun: Instant,
    sessions: ActiveSessions,
    driver: JoinHandle<()>,
    log: Log,
    model: Model,
    guards: Vec<(Number, SessionGuard)>,
    work: Vec<(Number, WorkGuard)>,
    held: Vec<Held>,
}

impl World {
    pub(crate) fn new(settings: Settings) -> Self {
        let log = Log::default();
        let sessions = handle(&log, settings);
        Self {
            settings,
            begun: Instant::now(),
            driver: tokio::spawn(sessions.shutdown_on(std::future::pending::<()>())),
            sessions,
            log,
            model: Model::new(settings),
            guards: Vec::new(),
            work: Vec::new(),
            held: Vec::new(),
        }
    }

    pub(crate) async fn step(&mut self, step: Step) {
        let Self { sessions, model, guards, work, held, .. } = self;
        let starts = model.starts;
        match step {
            Step::Note(id, parent) => {
                model.note(id, parent);
                assert_eq!(sessions.note(session(id, parent)).is_new(), model.starts > starts);
            }
            Step::End(id) => {
                assert_eq!(sessions.end(name(id), EndReason::Deleted), model.end(id, EndReason::Deleted));
            }
            Step::Forget(id) => assert_eq!(sessions.forget(name(id)), model.forget(id)),
            Step::ForgetAll => assert_eq!(sessions.forget_all(), model.forget_all()),
            Step::Compact(old, new, parent) => {
                let outcome = sessions.compact(name(old), session(new, parent));
                assert_eq!(outcome.ended_old(), model.compact((old, None), (new, parent), None));
                assert_eq!(outcome.is_new(), model.starts > starts);
            }
            Step::Guard(id) => guards.push((model.guard(id), sessions.guard(name(id)).unwrap())),
            Step::DropGuard(which) if !guards.is_empty() => {
                let (number, guard) = guards.swap_remove(which % guards.len());
                model.drop_guard(number);
                drop(guard);
            }
            Step::Work(id) => {
                let number = model.number(id).and_then(|number| model.begin_work(number));
                let guard = sessions.work(name(id));
                assert_eq!(guard.is_some(), number.is_some());
                work.extend(number.zip(guard));
            }
            Step::WorkOfGuard(which) if !guards.is_empty() => {
                let (number, guard) = &guards[which % guards.len()];
                let (number, guard) = (model.begin_work(*number), guard.work());
                assert_eq!(guard.is_some(), number.is_some());
                work.extend(number.zip(guard));
            }
            Step::DropWork(which) if !work.is_empty() => {
                let (number, guard) = work.swap_remove(which % work.len());
                model.end_work(number);
                drop(guard);
            }
            Step::Request(id) => held.push(request(sessions, model, id)),
            Step::Exchange(id, answer) => {
                let held = request(sessions, model, id);
                respond(model, held, answer).await;
            }
            Step::Respond(which, answer) if !held.is_empty() => {
                let held = held.swap_remove(which % held.len());
                respond(model, held, answer).await;
            }
            Step::DropGuard(_) | Step::WorkOfGuard(_) | Step::DropWork(_) | Step::Respond(..) => {}
            Step::Wait(millis) => self.wait(Duration::from_millis(millis.into())).await,
            Step::Doze(secs) => self.wait(Duration::from_secs(secs.into())).await,
            Step::Silence => self.wait(IDLE + IDLE / 8).await,
            Step::Drain => {
                let at_work = model.drain(EndReason::Restart, true);
                let report = sessions.drain(EndReason::Restart).await;
                assert!(report.is_clean(), "{report}");
                assert_eq!(report.at_work, at_work as u64, "{report}");
            }
            Step::HalfADrain(millis) => {
                // Never at the same moment as the end of the settle time.
                let half = Duration::from_millis(u64::from(millis) | 1);
                model.drain(EndReason::Shutdown, half > self.settings.settle);
                let _ = timeout(half, sessions.drain(EndReason::Shutdown)).await;
            }
        }
        self.model.now = self.millis();
        self.check();
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    /// At least so long, and until nothing is about to come due.
    async fn wait(&mut self, time: Duration) {
        let until = self.model.quiet_from(self.millis() + u64::try_from(time.as_millis()).unwrap());
        sleep_until(self.begun + Duration::from_millis(until)).await;
        self.model.pass(until);
    }

    /// The sessions that are active are those of the model, with the same parents.
    fn check(&mut self) {
        let Self { sessions, model, .. } = self;
        let gone = |(id, _): &(u8, Option<u8>)| (!sessions.contains(name(*id))).then_some(*id);
        let gone: BTreeSet<_> = model.active().iter().filter_map(gone).collect();
        model.evict(&gone);
        let expected: Vec<_> = model.active().iter().map(|(id, parent)| (name(*id), parent.map(name))).collect();
        let pair = |session: &Session| (session.id.to_string(), session.parent.as_ref().map(ToString::to_string));
        let mut active: Vec<_> = sessions.snapshot().iter().map(pair).collect();
        active.sort();
        assert_eq!(active, expected);
        assert_eq!(sessions.len(), expected.len());
    }

    /// Shuts down, and compares every hook with what the model owes.
    pub(crate) async fn finish(self) {
        let Self { sessions, driver, log, mut model, guards, mut work, held, .. } = self;
        driver.abort();
        for (number, guard) in guards {
            model.drop_guard(number);
            drop(guard);
        }
        // Some work outlives the handle.
        for (number, guard) in work.drain(..work.len() / 2) {
            model.end_work(number);
            drop(guard);
        }
        model.drain(EndReason::Shutdown, true);
        let report = sessions.finish(async {}).await.report;
        drop((work, held));
        assert!(report.is_clean(), "{report}");
        let total = &report.sessions;
        assert_eq!(total.total(), total.ended + total.forgotten, "{report}");
        compare(&log.0.lock().unwrap(), &model);
    }
}

fn compare(log: &[(String, Number, Moment)], model: &Model) {
    let mut by_id = BTreeMap::<_, Vec<_>>::new();
    let mut ended = BTreeMap::new();
    let mut indices = HashMap::new();
    for (index, (id, number, moment)) in log.iter().enumerate() {
        by_id.entry(id).or_default().push((*number, *moment));
        indices.insert((*number, std::mem::discriminant(moment)), index);
        if let Moment::EndDone(reason) = moment {
            assert!(ended.insert(*number, (id.clone(), *reason)).is_none(), "generation {number} ended twice");
        }
    }
    // Exactly the ends that are owed.
    let numbers = |numbers: Vec<&Number>| numbers.into_iter().copied().collect::<Vec<_>>();
    assert_eq!(numbers(ended.keys().collect()), numbers(model.owed.keys().collect()));
    let index = |number: Number, moment: Moment| indices[&(number, std::mem::discriminant(&moment))];
    for (number, owed) in &model.owed {
        let (id, reason) = &ended[number];
        assert_eq!(*id, name(owed.id));
        assert!(owed.reasons.contains(reason), "generation {number} of {id}: {reason}, not {:?}", owed.reasons);
        // A start before each end, and the end of a parent before that of its child.
        assert!(index(*number, Moment::StartDone) < index(*number, Moment::EndBegan));
        if let Some(parent) = owed.parent.filter(|_| *reason == EndReason::Parent) {
            let (parent, child) = (index(parent, Moment::EndDone(*reason)), index(*number, Moment::EndBegan));
            assert!(parent < child, "generation {number} of {id} ended before its parent");
        }
    }
    // The hooks of one id in the order of its generations, none of them twice.
    for moments in by_id.values() {
        assert!(moments.is_sorted_by(|a, b| a < b), "{moments:?}");
    }
}

fn session(id: u8, parent: Option<u8>) -> Session {
    let session = Session::try_from(name(id)).unwrap();
    match parent {
        Some(parent) => session.with_parent(name(parent)),
        None => session,
    }
}

/// Sends a request into the layer, up to where the host holds it.
fn request(sessions: &ActiveSessions, model: &mut Model, id: Option<u8>) -> Held {
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
    let number = id.and_then(|id| model.request(id));
    Held { id, number, began: model.claims, answer, exchange }
}

/// The host answers, and the exchange is over.
async fn respond(model: &mut Model, held: Held, answer: Answer) {
    let Held { id, number, began, answer: sender, exchange } = held;
    let only = |named: u8| number.filter(|_| id == Some(named));
    let mut response = Response::new(String::new());
    let mut head = |header: &'static str, value: String| response.headers_mut().insert(header, value.parse().unwrap());
    match answer {
        Answer::Refuse | Answer::Doubt(_) => {}
        _ => number.into_iter().for_each(|number| model.trust(number)),
    }
    match answer {
        Answer::Nothing => {}
        Answer::Refuse => *response.status_mut() = StatusCode::NOT_FOUND,
        Answer::Doubt(doubted) => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            SessionUpdate::doubted(name(doubted)).insert_into(&mut response);
            model.doubt(doubted, only(doubted));
        }
        Answer::Echo | Answer::Open(_) => {
            let named = if let Answer::Open(named) = answer { Some(named) } else { id };
            if let Some(named) = named {
                head("x-session-id", name(named));
                model.id_in_head(named, (id, number), began);
            }
        }
        Answer::Started(named) => {
            SessionUpdate::started(name(named)).insert_into(&mut response);
            model.note(named, None);
        }
        Answer::End => {
            head("x-session-end", "reset".to_owned());
            id.into_iter().for_each(|id| model.end_by_response(id, number));
        }
        Answer::CompactInto(new) => {
            let old = id.unwrap_or(0);
            head("x-session-id", name(new));
            head("x-session-compacted-from", name(old));
            model.compact((old, only(old)), (new, None), Some(began));
        }
    }
    number.into_iter().for_each(|number| model.end_work(number));
    sender.send(response).unwrap();
    exchange.await;
}

/// Hooks take between nothing and 70 ms, as the generation likes.
fn handle(log: &Log, settings: Settings) -> ActiveSessions {
    let (starts, ends) = (log.clone(), log.clone());
    let mut builder = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(3600))
        .settle_timeout(settings.settle)
        .idle_timeout(IDLE)
        .doubt_timeout(DOUBT)
        .max_sessions(settings.max_sessions)
        .on_session_start(move |start: SessionStart| {
            let starts = starts.clone();
            async move {
                let number = number(&start.generation.to_string());
                starts.push(&start.session.id, number, Moment::StartBegan);
                sleep(Duration::from_millis(number * 7 % 50)).await;
                starts.push(&start.session.id, number, Moment::StartDone);
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let ends = ends.clone();
            async move {
                let number = number(&end.generation.to_string());
                ends.push(&end.session.id, number, Moment::EndBegan);
                sleep(Duration::from_millis(number * 31 % 70)).await;
                ends.push(&end.session.id, number, Moment::EndDone(end.reason));
            }
        });
    if let Some(lifetime) = settings.lifetime {
        builder = builder.max_lifetime(lifetime);
    }
    builder.build().unwrap()
}

fn number(generation: &str) -> Number {
    generation.rsplit('-').next().unwrap().parse().unwrap()
}
