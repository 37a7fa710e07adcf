//! The second storm: streams, sockets, slow requests and clients that vanish, while hooks fail and the stop comes.
//!
//! Three rounds; `STORM_ROUNDS=50` for the long form, `STORM_SEED` to repeat one that failed.

mod guests;
mod host;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::support::{Event, Random, Recorder, assert_sum, h1_client, h2_client, serve, storm_seeds, within};
use guests::{Guest, Seen, hesitate};
use host::Host;
use tokio::{
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_session_end::{ActiveSessions, EndReason, Phase, SessionId};

const CLIENTS: u64 = 500;
/// Clients that share one connection over HTTP/2, each with streams of its own.
const SHARING: u64 = 25;
const DRAIN: Duration = Duration::from_secs(2);
/// What a busy machine may add to the budgets.
const SLACK: Duration = Duration::from_secs(1);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Hooks that are mostly fine; some are slow, err, or panic.
#[derive(Clone, Default)]
struct Moody {
    /// Whose hooks run.
    running: Arc<Mutex<BTreeSet<String>>>,
    overlaps: Arc<AtomicU64>,
}

impl Moody {
    async fn hook(self, id: String, mood: u64) -> Result<(), &'static str> {
        let is_alone = self.running.lock().unwrap().insert(id.clone());
        self.overlaps.fetch_add(u64::from(!is_alone), SeqCst);
        yield_now().await;
        if mood % 16 < 3 {
            sleep(millis(mood / 16 % 16)).await;
        }
        self.running.lock().unwrap().remove(&id);
        match mood % 16 {
            0 => std::panic::resume_unwind(Box::new("a hook in a bad mood")),
            1 => Err("no"),
            _ => Ok(()),
        }
    }
}

async fn round(seed: u64) {
    let mut random = Random::new(seed);
    let (recorder, moody) = (Recorder::default(), Moody::default());
    let (starts, ends) = (moody.clone(), moody.clone());
    let (is_stubborn, settles) = (seed.is_multiple_of(3), seed.is_multiple_of(2));
    let lame_duck = millis(if random.one_in(3) { 50 } else { 0 });
    let connection_drain = millis(if is_stubborn { 1500 } else { 3000 });
    let mut builder = recorder
        .hooks(ActiveSessions::builder())
        .on_session_start(move |start| starts.clone().hook(start.session.id.to_string(), number(&start.session.id) + 4))
        .on_session_end(move |end| ends.clone().hook(end.session.id.to_string(), number(&end.session.id)))
        .drain_timeout(DRAIN)
        .connection_drain_timeout(connection_drain)
        .lame_duck_timeout(lame_duck);
    let [is_small, expires] = [3, 3].map(|n| random.one_in(n));
    if settles {
        builder = builder.settle_timeout(millis(300));
    }
    if is_small {
        builder = builder.max_sessions(60);
    }
    if expires {
        builder = builder.idle_timeout(millis(50));
    }
    let sessions = builder.build().unwrap();
    let host = Host::new(&sessions);
    let mut server = serve(&sessions, host.app()).await;

    let seen = Arc::new(Seen::default());
    let over = CancellationToken::new();
    let base = format!("http://{}", server.addr);
    let (h1, mut h2) = (h1_client(), h2_client());
    let mut living = JoinSet::new();
    for n in 0..CLIENTS {
        if n % SHARING == 0 {
            h2 = h2_client();
        }
        let is_socket = (1..=3).contains(&(n % 20));
        let client = if n % 2 == 0 || is_socket { h1.clone() } else { h2.clone() };
        let guest = Guest {
            base: base.clone(),
            client,
            sessions: sessions.clone(),
            seen: Arc::clone(&seen),
            over: over.clone(),
        };
        let random = random.fork();
        match n % 20 {
            0 if is_stubborn => living.spawn(hesitate(base.clone(), over.clone().cancelled_owned(), true)),
            0 => living.spawn(hesitate(base.clone(), sessions.closing(), false)),
            1..=3 => living.spawn(guest.hold_sockets(random)),
            4 | 5 => living.spawn(guest.only_listen(random)),
            _ => living.spawn(guest.talk(random)),
        };
    }
    drop((h1, h2));
    let moment = random.below(3000);
    within("the moment of the stop", async {
        while seen.answers.load(SeqCst) < moment {
            seen.news.notified().await;
        }
    })
    .await;
    let begun = Instant::now();
    server.signal();
    let report = server.report().await;
    let elapsed = begun.elapsed();
    over.cancel();
    while let Some(client) = within("the clients' end", living.join_next()).await {
        if let Err(error) = client {
            let [begun, answered, heads] = [&host.begun, &host.answered, &seen.heads].map(|count| count.load(SeqCst));
            panic!("seed {seed}: {error}; of {begun} requests {answered} were answered, {heads} came; {report}");
        }
    }

    let (starts, ends) = (recorder.starts(), recorder.ends());
    let mut reasons = BTreeMap::<String, u64>::new();
    ends.iter().for_each(|end| *reasons.entry(end.reason.to_string()).or_default() += 1);
    let streams = seen.streams.load(SeqCst);
    let about = format!(
        "seed {seed}, settles {settles}, small {is_small}, expires {expires}, stubborn {is_stubborn}; stopped after {moment} answers, \
         over after {elapsed:.1?}; {} births, {reasons:?}, {streams} streams, {} unheard; {report}",
        starts.len(),
        seen.unheard.load(SeqCst),
    );
    println!("{about}");

    // The budgets.
    assert!(elapsed <= lame_duck + DRAIN + connection_drain + SLACK, "{about}");
    assert_eq!(report.connections.timed_out, is_stubborn, "{about}");
    assert_eq!(report.connections.open_responses, 0, "{about}");
    assert!(report.signalled && sessions.is_empty() && sessions.phase() == Phase::Closed, "{about}");

    // The ends.
    let started: BTreeSet<_> = starts.iter().map(|start| (start.generation, start.session.id.to_string())).collect();
    let ended: BTreeSet<_> = ends.iter().map(|end| (end.generation, end.session.id.to_string())).collect();
    assert_eq!((started.len(), ended.len()), (starts.len(), ends.len()), "an event came twice; {about}");
    assert!(started == ended, "{:?}; {about}", started.symmetric_difference(&ended).collect::<Vec<_>>());
    let (opened, guarded) = (host.opened.lock().unwrap().clone(), host.guarded.lock().unwrap().clone());
    let owed: BTreeSet<_> = opened.union(&guarded).cloned().collect();
    let ids: BTreeSet<_> = ended.into_iter().map(|(_, id)| id).collect();
    assert!(ids == owed, "{:?}; {about}", ids.symmetric_difference(&owed).collect::<Vec<_>>());
    assert!(seen.opened.lock().unwrap().is_subset(&opened), "{about}");
    let mut last = BTreeMap::<String, Option<EndReason>>::new();
    for event in recorder.events() {
        let before = last.entry(event.id().to_owned());
        match event {
            Event::Start(start) => {
                // Nothing but a guard revives what the stop has ended. What the host has ended starts anew by a request
                // that begins later.
                let id = start.session.id.as_str();
                let is_fine = |reason: EndReason| !reason.may_resume() || guarded.contains(id);
                let before = before.or_insert(Some(EndReason::Idle));
                assert!(before.take().is_some_and(is_fine), "{id}: a start too many, or too early; {about}");
            }
            Event::End(end) => assert!(before.or_default().replace(end.reason).is_none(), "two ends in a row; {about}"),
        }
    }

    assert_eq!(moody.overlaps.load(SeqCst), 0, "two hooks of one session at a time; {about}");

    // The report.
    assert_sum(&report.drain);
    assert_sum(&report.sessions);
    assert!(report.drain.unfinished.is_empty() && report.sessions.unfinished.is_empty(), "{about}");
    assert!(report.sessions.total() <= ends.len() as u64, "{about}");

    // The clients that stayed.
    let [begun, answered, heads] = [&host.begun, &host.answered, &seen.heads].map(|count| count.load(SeqCst));
    assert_eq!((begun, begun), (answered, heads), "a request was left without an answer; {about}");
    assert_eq!(seen.torn.load(SeqCst), 0, "a body was cut short; {about}");
    assert_eq!(seen.early.load(SeqCst), 0, "a stream ended early; {about}");

    // Connections may take a moment to find out that the other side is gone; nothing else is left.
    within("the end of every task", async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            yield_now().await;
        }
    })
    .await;
}

/// The number in an id.
fn number(id: &SessionId) -> u64 {
    id.as_str()["s-".len()..].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g01_g02_g08_g10_streams_sockets_and_vanishing_clients_in_a_stop() {
    let _alone = crate::ONE_AT_A_TIME.lock().await;
    for seed in storm_seeds() {
        round(seed).await;
    }
}
