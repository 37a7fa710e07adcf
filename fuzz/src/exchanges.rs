//! Sequences of everything: requests whose answers come in any order, calls on the handle, time, and the stop.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Empty;
use tokio::sync::oneshot;
use tower::{Layer, Service, service_fn};
use tower_session_end::{
    ActiveSessions, EndReason, GenerationId, HeaderProtocol, Session, SessionEnd, SessionGuard, SessionId, SessionUpdate,
    SessionStart,
};

use crate::{heads, input::Input};

const NAMES: &[&str] = &["x-session-id", "x-session-end", "x-session-compacted-from", "x-other"];
const IDS: &[&str] = &["a", "b", "c", "d", "e"];
const VALUES: &[&str] = &["a", "b", "c", "d", "e", "", "reset", "a b"];

/// What the hooks were told, in order: the id, the generation, whether it is an end.
type Log = Arc<Mutex<Vec<(String, GenerationId, bool)>>>;

type Answer = Response<Empty<Bytes>>;

struct Held {
    answer: oneshot::Sender<Answer>,
    exchange: Pin<Box<dyn Future<Output = ()>>>,
}

/// A runtime whose clock stands still, and one sequence in it: every generation that had a start has one end, or was
/// forgotten; the hooks of an id alternate; the report adds up.
pub fn exchanges(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(Input(data)));
}

async fn run(mut input: Input<'_>) {
    let log = Log::default();
    let (starts, ends) = (Arc::clone(&log), Arc::clone(&log));
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(3600))
        .idle_timeout(Duration::from_secs(100))
        .max_sessions(1 + input.below(5))
        .on_session_start(move |start: SessionStart| {
            starts.lock().expect("no panics").push((start.session.id.to_string(), start.generation, false));
            std::future::ready(())
        })
        .on_session_end(move |end: SessionEnd| {
            ends.lock().expect("no panics").push((end.session.id.to_string(), end.generation, true));
            tokio::time::sleep(Duration::from_millis(end.requests * 3))
        })
        .build()
        .expect("legal settings");
    let protocol = HeaderProtocol::new().adopt(input.flag()).strip_control_headers(input.flag());
    let layer = sessions.layer_with(protocol);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let (mut held, mut guards, mut forgotten) = (Vec::<Held>::new(), Vec::<SessionGuard>::new(), 0);
    for _ in 0..64 {
        if input.is_used_up() {
            break;
        }
        match input.below(16) {
            0 | 1 => drop(sessions.note(input.one_of(IDS))),
            2 => drop(sessions.end(input.one_of(IDS), EndReason::Deleted)),
            3 => forgotten += u64::from(sessions.forget(input.one_of(IDS))),
            4 => drop(sessions.compact(input.one_of(IDS), input.one_of(IDS))),
            5 => guards.push(sessions.guard(input.one_of(IDS)).unwrap()),
            6 => drop(guards.pop()),
            7..=9 => held.push(ask(&layer, &heads::headers(&mut input, NAMES, VALUES)).await),
            10..=12 if !held.is_empty() => {
                let which = input.below(held.len());
                answer(&mut input, held.swap_remove(which)).await;
            }
            // The client leaves.
            13 => drop(held.pop()),
            14 => tokio::time::sleep(Duration::from_secs(u64::from(input.byte()))).await,
            15 => {
                let some = Duration::from_millis(u64::from(input.byte()));
                let _ = tokio::time::timeout(some, sessions.drain(EndReason::Restart)).await;
            }
            _ => tokio::task::yield_now().await,
        }
    }
    driver.abort();
    drop((held, guards));
    let finished = sessions.finish(async {}).await;
    let report = &finished.report.sessions;
    assert!(finished.report.is_clean(), "{}", finished.report);
    assert_eq!(report.total(), report.ended + report.forgotten, "{report}");
    assert_eq!(finished.report.connections.open_responses, 0);

    let log = log.lock().expect("no panics");
    let mut generations = BTreeMap::<GenerationId, (u64, u64)>::new();
    let mut last = BTreeMap::<&str, bool>::new();
    for (id, event, is_end) in log.iter() {
        let (starts, ends) = generations.entry(*event).or_default();
        if *is_end {
            *ends += 1
        } else {
            *starts += 1
        }
        assert!(*starts == 1 && *ends <= 1, "{log:?}");
        if *is_end {
            assert_eq!(last.insert(id, true), Some(false), "{log:?}");
        } else {
            last.insert(id, false);
        }
    }
    // The start of one that was forgotten at once may come to nobody any more.
    let silent = generations.values().filter(|(_, ends)| *ends == 0).count() as u64;
    assert!(silent <= forgotten, "{log:?}");
}

async fn ask(layer: &tower_session_end::SessionLayer, headers: &HeaderMap) -> Held {
    let (answer, answered) = oneshot::channel::<Answer>();
    let mut answered = Some(answered);
    let host = service_fn(move |_: Request<()>| {
        let answered = answered.take().expect("one request");
        async move { Ok::<_, Infallible>(answered.await.unwrap_or_default()) }
    });
    let mut request = Request::new(());
    *request.headers_mut() = headers.clone();
    let response = layer.layer(host).call(request);
    Held { answer, exchange: Box::pin(async move { drop(response.await) }) }
}

async fn answer(input: &mut Input<'_>, held: Held) {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = if input.flag() { StatusCode::OK } else { heads::status(input) };
    *response.headers_mut() = heads::headers(input, NAMES, VALUES);
    for _ in 0..input.below(3) {
        let [one, other] = [input.one_of(IDS), input.one_of(IDS)].map(|id| SessionId::new(id).expect("an id"));
        let signal = match input.below(3) {
            0 => SessionUpdate::started(Session::new(one).with_key("k")),
            1 => SessionUpdate::ended(one, EndReason::Reset),
            _ => SessionUpdate::compacted(one, Session::new(other)),
        };
        signal.insert_into(&mut response);
    }
    let _ = held.answer.send(response);
    held.exchange.await;
}
