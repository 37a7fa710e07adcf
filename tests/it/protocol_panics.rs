//! Protocols that panic.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Recorder, answer, ask, assert_sum};
use http::Request;
use tokio::time::{Instant, timeout};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, EndReason, RequestInfo, SessionId, SessionProtocol, SessionUpdate,
};

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
