//! The layer is not there: readiness, errors, frames, trailers, sizes and upgrades are the host's own.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use crate::support::{Failed, Hint, Script, Step, ask};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::HeaderValue};
use http_body::{Body, SizeHint};
use http_body_util::Empty;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, BuildError, ClosingFuture, ConnectionReport, DrainReport, EndReason,
    FinishOutput, GenerationId, HeaderProtocol, HookFailure, InvalidSessionId, MissingSessionLayer, NoteOutcome, Phase,
    RecoveryReport, RequestInfo, ResponseFuture, Session, SessionBody, SessionEnd, SessionGuard, SessionId,
    SessionIdRejection, SessionLayer, SessionProtocol, SessionService, SessionStart, SessionUpdate, ShutdownFuture,
    ShutdownReport, UnfinishedEnd, signal,
};

fn sessions() -> ActiveSessions {
    ActiveSessions::builder().build().unwrap()
}

/// What the probes of one family share.
#[derive(Default)]
struct Wire {
    open: bool,
    fail: bool,
    waker: Option<Waker>,
    calls: usize,
}

/// A service that knows tower's rule: a call needs a `poll_ready` of this very instance, and a clone has had none.
#[derive(Default)]
struct Probe {
    wire: Arc<Mutex<Wire>>,
    is_ready: bool,
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self { wire: Arc::clone(&self.wire), is_ready: false }
    }
}

impl Service<Request<()>> for Probe {
    type Response = Response<Empty<Bytes>>;
    type Error = Failed;
    type Future = Ready<Result<Self::Response, Failed>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let mut wire = self.wire.lock().unwrap();
        if wire.fail {
            return Poll::Ready(Err(Failed("not ready, and never will be")));
        }
        if !wire.open {
            wire.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without `poll_ready`");
        self.wire.lock().unwrap().calls += 1;
        ready(Ok(Response::new(Empty::new())))
    }
}

#[tokio::test]
async fn g18_readiness_is_the_hosts_own() {
    let wire = Arc::new(Mutex::new(Wire::default()));
    let mut service = sessions().layer().layer(Probe { wire: Arc::clone(&wire), is_ready: false });
    let mut ready = task::spawn(poll_fn(|cx| service.poll_ready(cx)));
    assert_pending!(ready.poll());
    assert_pending!(ready.poll(), "a layer that remembers an answer of its own would say otherwise");
    let waker = {
        let mut wire = wire.lock().unwrap();
        wire.open = true;
        wire.waker.take().unwrap()
    };
    waker.wake();
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    wire.lock().unwrap().fail = true;
    assert_eq!(assert_ready_err!(ready.poll()), Failed("not ready, and never will be"));
}

#[tokio::test]
async fn g18_a_call_goes_to_the_instance_that_was_polled() {
    let wire = Arc::new(Mutex::new(Wire { open: true, ..Wire::default() }));
    let mut service = sessions().layer().layer(Probe { wire: Arc::clone(&wire), is_ready: false });
    for _ in 0..3 {
        service.ready().await.unwrap().call(ask(&[])).await.unwrap();
        // As middleware has to do it.
        let clone = service.clone();
        let mut polled = std::mem::replace(&mut service, clone);
        polled.ready().await.unwrap();
        polled.call(ask(&[])).await.unwrap();
    }
    assert_eq!(wire.lock().unwrap().calls, 6);
}

#[tokio::test]
#[should_panic(expected = "called without `poll_ready`")]
async fn g18_a_clone_is_as_unready_as_the_hosts() {
    let wire = Arc::new(Mutex::new(Wire { open: true, ..Wire::default() }));
    let mut service = sessions().layer().layer(Probe { wire, is_ready: false });
    service.ready().await.unwrap();
    let _ = service.clone().call(ask(&[])).await;
}

#[tokio::test]
async fn g18_an_error_is_the_hosts_own() {
    let failing = service_fn(|_: Request<()>| ready(Err::<Response<Empty<Bytes>>, _>(Failed("the host's"))));
    let error = sessions().layer().layer(failing).oneshot(ask(&[])).await.unwrap_err();
    assert_eq!(error, Failed("the host's"));
}

#[tokio::test]
async fn g18_status_headers_version_and_extensions_are_the_hosts_own() {
    let host = service_fn(|request: Request<()>| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::from_u16(299).unwrap();
        *response.version_mut() = request.version();
        for (name, value) in [("set-cookie", "a=1"), ("x-session-id", "a"), ("set-cookie", "b=2"), ("x-other", "\t")] {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        response.extensions_mut().insert("an extension");
        ready(Ok::<_, Infallible>(response))
    });
    let bare = host.oneshot(ask(&[])).await.unwrap();
    let layered = sessions().layer().layer(host).oneshot(ask(&[])).await.unwrap();
    assert_eq!(layered.status(), bare.status());
    assert_eq!(layered.version(), bare.version());
    assert_eq!(layered.headers().iter().collect::<Vec<_>>(), bare.headers().iter().collect::<Vec<_>>());
    assert_eq!(layered.extensions().get::<&str>(), Some(&"an extension"));
    assert_eq!(layered.extensions().len(), 1);
}

/// All that can be seen of a body, poll by poll.
#[derive(Debug, PartialEq)]
enum Seen {
    Data(Bytes),
    Trailers(HeaderMap),
    Error(String),
    Pending,
    End,
}

fn watch<B>(body: B) -> Vec<(Seen, (u64, Option<u64>), bool)>
where
    B: Body<Data = Bytes, Error: std::fmt::Display>,
{
    let mut body = task::spawn(Box::pin(body));
    let about = |body: &B| {
        let hint: SizeHint = body.size_hint();
        ((hint.lower(), hint.upper()), body.is_end_stream())
    };
    let (hint, is_end) = about(&body);
    let mut seen = vec![(Seen::Pending, hint, is_end)];
    for _ in 0..12 {
        let polled = body.enter(|cx, body: Pin<&mut Pin<Box<B>>>| body.get_mut().as_mut().poll_frame(cx));
        let what = match polled {
            Poll::Pending => Seen::Pending,
            Poll::Ready(None) => Seen::End,
            Poll::Ready(Some(Err(error))) => Seen::Error(error.to_string()),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Seen::Data(data),
                Err(frame) => Seen::Trailers(frame.into_trailers().unwrap()),
            },
        };
        let (hint, is_end) = about(&body);
        seen.push((what, hint, is_end));
    }
    seen
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())])
}

async fn layered(script: Script, sessions: &ActiveSessions) -> SessionBody<Script> {
    let mut script = Some(script);
    let host = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(script.take().unwrap()))));
    sessions.layer().layer(host).oneshot(ask(&[])).await.unwrap().into_body()
}

#[tokio::test]
async fn g18_body_frames_trailers_sizes_and_ends_are_the_hosts_own() {
    use Step::{Data, Fail, Hang, Trailers, Wait};
    let steps = [
        vec![],
        vec![Data("one")],
        vec![Data("one"), Wait, Data(""), Data("two"), Wait, Wait, Trailers(trailers())],
        vec![Wait, Trailers(trailers())],
        vec![Data("one"), Fail("torn"), Data("after it")],
        vec![Data("one"), Hang],
    ];
    let mut kinds = VecDeque::new();
    for steps in steps {
        for hint in [Hint::None, Hint::Range(1, 99), Hint::Exact] {
            let script = Script::new(steps.clone(), hint);
            let seen = watch(layered(script.clone(), &sessions()).await);
            assert_eq!(seen, watch(script), "{steps:?} {hint:?}");
            kinds.extend(seen.into_iter().map(|(what, ..)| what));
        }
    }
    assert!(kinds.contains(&Seen::Trailers(trailers())) && kinds.contains(&Seen::Error("torn".into())));
}

#[tokio::test]
async fn g18_a_body_that_fails_fails_with_the_hosts_own_error() {
    let body = layered(Script::new([Step::Fail("torn")], Hint::None), &sessions()).await;
    let mut body = task::spawn(Box::pin(body));
    let failed = body.enter(|cx, body| body.poll_frame(cx));
    let Poll::Ready(Some(Err(error))) = failed else { panic!("{failed:?}") };
    assert_eq!(error.downcast_ref::<Failed>(), Some(&Failed("torn")));
}

#[test]
fn public_types_are_what_an_async_program_needs() {
    const fn send_sync<T: Send + Sync>() {}
    const fn send<T: Send>() {}
    const fn clone<T: Clone>() {}
    const fn unpin<T: Unpin>() {}
    const fn fixed<T: 'static>() {}
    const fn debug<T: std::fmt::Debug>() {}
    const fn error<T: std::error::Error + Send + Sync + 'static>() {}
    macro_rules! each {
        ($($type:ty: $($check:ident)*;)*) => { $($( $check::<$type>(); )*)* };
    }
    each! {
        ActiveSessions: send_sync clone unpin fixed debug;
        ActiveSessionsBuilder: send unpin fixed debug;
        SessionLayer: send_sync clone unpin fixed debug;
        SessionService<Probe>: send_sync clone unpin fixed;
        ResponseFuture<Ready<()>, Empty<Bytes>>: send_sync unpin fixed debug;
        SessionBody<Empty<Bytes>>: send_sync unpin fixed debug;
        SessionId: send_sync clone unpin fixed debug;
        Session: send_sync clone unpin fixed debug;
        SessionStart: send_sync clone unpin fixed debug;
        SessionEnd: send_sync clone unpin fixed debug;
        SessionUpdate: send_sync clone unpin fixed debug;
        SessionGuard: send_sync unpin fixed debug;
        ClosingFuture: send_sync fixed debug;
        ShutdownFuture: send unpin fixed debug;
        signal::Terminate: send unpin fixed;
        signal::ShutdownRequest: send unpin fixed debug;
        NoteOutcome: send_sync clone unpin fixed debug;
        HeaderProtocol: send_sync clone unpin fixed debug;
        RequestInfo: send_sync clone unpin fixed debug;
        Box<dyn SessionProtocol>: send_sync unpin fixed;
        DrainReport: send_sync clone unpin fixed debug;
        RecoveryReport: send_sync clone unpin fixed debug;
        ShutdownReport: send_sync clone unpin fixed debug;
        ConnectionReport: send_sync clone unpin fixed debug;
        UnfinishedEnd: send_sync clone unpin fixed debug;
        HookFailure: send_sync clone unpin fixed debug;
        FinishOutput<std::io::Result<()>>: send_sync unpin fixed debug;
        EndReason: send_sync clone unpin fixed debug;
        GenerationId: send_sync clone unpin fixed debug;
        Phase: send_sync clone unpin fixed debug;
        BuildError: error clone;
        InvalidSessionId: error clone;
        MissingSessionLayer: error;
        SessionIdRejection: error;
    }
    // A host that is bound to its thread is a host too.
    debug::<SessionBody<std::rc::Rc<()>>>();
    debug::<ResponseFuture<std::rc::Rc<()>, std::rc::Rc<()>>>();
}
