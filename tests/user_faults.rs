//! Faults in user code: protocols, signals, hooks that call back, runtimes that go away in the middle of a stop.

#[path = "support/store.rs"]
mod store;
mod support;

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use store::{Fault, Store};
use support::{Event, Recorder, answer, ask, assert_sum};
use tokio::time::{Instant, sleep, timeout};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, EndReason, Phase, RequestInfo, SessionEnd, SessionId, SessionProtocol,
    SessionUpdate, signal::ShutdownRequest,
};

const SECOND: Duration = Duration::from_secs(1);

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// A protocol that panics wherever it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    Request,
    MayOpen,
    Response,
}

impl SessionProtocol for Bad {
    fn request_id(&self, request: &http::request::Parts) -> Option<SessionId> {
        assert!(*self != Self::Request, "bad protocol");
        request.headers.get("x-session-id").and_then(|value| value.to_str().ok()?.parse().ok())
    }

    fn may_start(&self, _: &http::request::Parts, _: Option<&SessionId>) -> bool {
        assert!(*self != Self::MayOpen, "bad protocol");
        false
    }

    fn response(&self, _: &RequestInfo, _: &mut http::response::Parts) -> SessionUpdate {
        assert!(*self != Self::Response, "bad protocol");
        SessionUpdate::empty()
    }
}

#[tokio::test(start_paused = true)]
async fn g18_a_protocol_that_panics_takes_no_response_down_and_is_warned_of_once() {
    for bad in [Bad::Request, Bad::MayOpen, Bad::Response] {
        let log = Log::default();
        let _logging = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(log.clone()).finish());
        let (recorder, sessions) = with(|builder| builder.refuse_new_sessions(true));
        let layer = sessions.layer_with(bad);
        sessions.note("a");
        for _ in 0..3 {
            // What the handler says counts all the same.
            let host = service_fn(|_: Request<()>| async {
                let mut response = answer(201, &[("x-host", "untouched")]);
                SessionUpdate::started("b").insert_into(&mut response);
                Ok::<_, Infallible>(response)
            });
            let response = layer.layer(host).oneshot(ask(&[("x-session-id", "a")])).await.unwrap();
            assert_eq!(
                (response.status().as_u16(), &response.headers()["x-host"]),
                (201, &"untouched".parse().unwrap())
            );
            // From here on the protocol is asked about every request that may open a session.
            let _ = sessions.drain(EndReason::Shutdown).await;
        }
        assert_eq!(log.text().matches("a session protocol panicked").count(), 1, "{bad:?}: {}", log.text());
        let report = sessions.finish(async {}).await.report;
        assert_eq!(report.connections.open_responses, 0);
        assert_sum(&report.sessions);
        recorder.assert_no_generation_ended_twice();
        assert!(recorder.started().contains(&"b".to_owned()));
    }
}

/// A panic in the host, and futures that are dropped, leak no count.
#[tokio::test(start_paused = true)]
async fn g18_panics_and_dropped_futures_leak_no_count() {
    let sessions = ActiveSessions::builder().settle_timeout(Duration::from_secs(1)).build().unwrap();
    sessions.note("a");
    let layer = sessions.layer_with(Bad::Response);
    let host = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(answer(200, &[])) });
    let response = tokio::spawn(layer.layer(host).oneshot(ask(&[("x-session-id", "a")])));
    assert!(response.await.is_ok_and(|response| response.is_ok()));
    let host = service_fn(|_: Request<()>| async {
        if true {
            panic!("bad host")
        }
        Ok::<_, Infallible>(answer(200, &[]))
    });
    assert!(tokio::spawn(layer.layer(host).oneshot(ask(&[("x-session-id", "a")]))).await.is_err());
    let host = service_fn(|_: Request<()>| {
        if true {
            panic!("bad call")
        }
        std::future::ready(Ok::<_, Infallible>(answer(200, &[])))
    });
    assert!(tokio::spawn(layer.layer(host).oneshot(ask(&[("x-session-id", "a")]))).await.is_err());
    let host = service_fn(|_: Request<()>| {
        pending::<Result<http::Response<http_body_util::Empty<bytes::Bytes>>, Infallible>>()
    });
    assert!(timeout(Duration::from_millis(1), layer.layer(host).oneshot(ask(&[("x-session-id", "a")]))).await.is_err());
    let begun = Instant::now();
    let f = sessions.finish(async {}).await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    assert_eq!(f.report.connections.open_responses, 0);
}

/// As axum does it: the shutdown future in a task of its own, whose panic nobody sees; then connections that never drain.
async fn server(shutdown: impl Future<Output = ()> + Send + 'static) {
    let _ = tokio::spawn(shutdown).await;
    pending::<()>().await;
}

/// Resolves at once, and panics when it is dropped.
struct PanicsOnDrop;

impl Future for PanicsOnDrop {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the drop of a signal");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn g10_signals_that_panic_leave_the_stop_bounded() {
    let panicking = || async {
        if true {
            panic!("a second signal")
        }
    };
    for n in 0..3 {
        let (recorder, sessions) = with(|builder| builder);
        sessions.note("a");
        let begun = Instant::now();
        let finish = match n {
            0 => sessions.finish(server(sessions.shutdown_on(PanicsOnDrop))),
            // Polled by the drain; and, once that is over, by `finish`.
            1 => sessions.finish(server(
                sessions.shutdown_on(async move { ShutdownRequest::new(EndReason::Shutdown).forced_by(panicking()) }),
            )),
            _ => sessions.finish(server(sessions.shutdown_on(async move {
                ShutdownRequest::new(EndReason::Shutdown).forced_by(async move {
                    sleep(5 * SECOND).await;
                    panicking().await;
                })
            }))),
        };
        let finished = timeout(3600 * SECOND, finish).await.unwrap_or_else(|_| panic!("{n}: an unbounded stop"));
        assert!(begun.elapsed() <= 12 * SECOND + SECOND / 10, "{n}: {:?}", begun.elapsed());
        assert_eq!(sessions.phase(), Phase::Closed);
        assert_eq!(recorder.ended(), ["a shutdown"], "{n}");
        assert!(finished.report.signalled);
    }
}

#[tokio::test(start_paused = true)]
async fn g11_a_signal_that_never_comes_holds_no_server_that_ends_by_itself() {
    let (recorder, sessions) = with(|builder| builder);
    sessions.note("a");
    let never = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let report = timeout(60 * SECOND, sessions.finish(sleep(SECOND))).await.unwrap().report;
    assert!(report.is_clean() && !report.signalled, "{report}");
    assert_eq!(recorder.ended(), ["a shutdown"]);
    assert!(!never.is_finished());
    never.abort();
}

#[tokio::test(start_paused = true)]
async fn keep_if_may_call_back_into_the_handle() {
    let handle = Arc::new(OnceLock::<ActiveSessions>::new());
    let inside = Arc::clone(&handle);
    let (recorder, sessions) = with(|builder| {
        builder.keep_if(move |session, _| {
            let sessions = inside.get().unwrap();
            match session.id.as_str() {
                "forgets" => sessions.forget("forgets"),
                "ends" => sessions.end("ends", EndReason::Reset),
                "notes" => sessions.note("noted-inside").is_new(),
                _ => sessions.snapshot().len() == usize::MAX,
            }
        })
    });
    handle.set(sessions.clone()).unwrap();
    for id in ["forgets", "ends", "notes", "plain"] {
        sessions.note(id);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_sum(&report);
    assert_eq!((report.kept, report.forgotten), (1, 1), "{report}");
    assert_eq!(recorder.ended(), ["ends reset", "noted-inside shutdown", "plain shutdown"]);
}

/// Everything that a hook may call, with a registry behind it.
#[tokio::test(start_paused = true)]
async fn hooks_that_call_back_into_everything_end_every_session_once() {
    let store = Store::default();
    let handle = Arc::new(OnceLock::<ActiveSessions>::new());
    let recorder = Recorder::default();
    let (on_start, on_end) = ((Arc::clone(&handle), recorder.clone()), (Arc::clone(&handle), recorder.clone()));
    let sessions = ActiveSessions::builder()
        .registry(store.holder())
        .max_sessions(8)
        .on_session_start(move |start| {
            let sessions = on_start.0.get().unwrap().clone();
            let id = start.session.id.to_string();
            on_start.1.push(Event::Start(start));
            async move {
                // Not for those that it makes itself: that would be a chain without an end.
                if id.len() == 1 {
                    assert!(sessions.note(id.as_str()).recorded().await);
                    drop(sessions.guard(format!("guard-{id}")).unwrap());
                    let _ = sessions.recover().await;
                    assert!(sessions.compact(&id, format!("next-{id}")).ended_old());
                }
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let sessions = on_end.0.get().unwrap().clone();
            let id = end.session.id.to_string();
            on_end.1.push(Event::End(end));
            async move {
                // While it ends it is not there any more: neither of these finds it.
                assert!(!sessions.end(&id, EndReason::Reset) || sessions.phase() == Phase::Open);
                sessions.forget("nobody");
                let _ = (sessions.snapshot(), sessions.closing());
            }
        })
        .build()
        .unwrap();
    handle.set(sessions.clone()).unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["a", "b", "c"] {
        sessions.note(id);
        sleep(SECOND / 10).await;
    }
    driver.abort();
    let report = timeout(60 * SECOND, sessions.finish(async {})).await.expect("a stop that never ends").report;
    assert_sum(&report.sessions);
    recorder.assert_no_generation_ended_twice();
    assert!(report.sessions.unfinished.is_empty(), "{report}");
    assert!(store.events().is_empty());
}

#[test]
fn g05_a_runtime_that_is_shut_down_in_the_middle_of_a_drain_loses_no_end() {
    let runtimes = || {
        [
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        ]
    };
    for fault in [Fault::None, Fault::Hangs] {
        for (first, second) in runtimes().into_iter().zip(runtimes()) {
            let store = Store::default();
            let holder = store.holder();
            let recorder = Recorder::default();
            let sessions = first.block_on(async {
                let slow =
                    recorder.slow_builder(|end| if end.session.id == "slow" { 3600 * SECOND } else { SECOND / 100 });
                let slow = slow.registry(holder.clone()).max_concurrent_hooks(2).drain_timeout(SECOND / 2);
                let sessions = slow.build().unwrap();
                for n in 0..50 {
                    sessions.note(format!("{n}"));
                }
                sessions.note("slow").recorded().await;
                holder.set(fault);
                let drain = tokio::spawn({
                    let sessions = sessions.clone();
                    async move { sessions.drain(EndReason::Restart).await }
                });
                while sessions.phase() < Phase::Closing {
                    tokio::task::yield_now().await;
                }
                sleep(SECOND / 20).await;
                drop(drain);
                sessions
            });
            first.shutdown_background();
            holder.set(Fault::None);
            let report = second.block_on(async { sessions.drain(EndReason::Shutdown).await });
            assert_sum(&report);
            // The one whose hook was torn from the middle stays on record, for whoever comes next.
            recorder.assert_no_generation_ended_twice();
            let ended = recorder.ends().len();
            let left = report.unfinished.len();
            assert_eq!(ended + left, 51, "{fault:?}: {report}");
            assert!(recorder.ends().iter().all(|end| end.reason == EndReason::Restart));
            holder.kill();
            let next = second.block_on(async {
                let (recorder, sessions) = with(|builder| builder.registry(store.holder()));
                let _ = sessions.recover().await;
                recorder.ends().len()
            });
            assert!(next <= left && ended + next >= 50, "{ended} here, {next} by the next one");
        }
    }
}
