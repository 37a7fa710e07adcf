//! A listener that is shared with a successor: from the signal on, only the successor accepts.

use std::{
    future::ready,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::post, serve::Listener};
use http::{HeaderMap, Request, StatusCode};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, oneshot},
    time::{interval, timeout},
};
use tower_session_end::{AcceptUntilSignal, ActiveSessions, EndReason, Phase, SessionEnd};

use crate::support::{Recorder, assert_sum, within};

const SECOND: Duration = Duration::from_secs(1);

/// Says when it is closed.
struct Told {
    listener: TcpListener,
    closed: Option<oneshot::Sender<()>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.closed.take().unwrap().send(());
    }
}

impl Listener for Told {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A host that starts a session with each request, and counts those on connections that came after the listener of the
/// first server was closed.
#[derive(Clone, Default)]
struct Host {
    started: Arc<AtomicUsize>,
    late: Arc<AtomicUsize>,
}

impl Host {
    fn app(&self, sessions: &ActiveSessions, name: &'static str) -> Router {
        let host = self.clone();
        let start = async move |headers: HeaderMap| {
            let n = host.started.fetch_add(1, Ordering::SeqCst);
            if headers.contains_key("x-late") {
                host.late.fetch_add(1, Ordering::SeqCst);
            }
            [("x-session-id", format!("{name}-{n}"))]
        };
        Router::new().route("/", post(start)).layer(sessions.layer())
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    fn late(&self) -> usize {
        self.late.load(Ordering::SeqCst)
    }
}

/// Clients that take a new connection for each request, until they are stopped.
#[derive(Clone)]
struct Clients {
    addr: SocketAddr,
    is_late: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
}

impl Clients {
    async fn run(self) -> usize {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http::<Body>();
        let mut sent = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let mut request = Request::post(format!("http://{}/", self.addr)).header("connection", "close");
            if self.is_late.load(Ordering::SeqCst) {
                request = request.header("x-late", "1");
            }
            let answer = within("an answer", client.request(request.body(Body::empty()).unwrap())).await;
            let answer = answer.unwrap_or_else(|error| panic!("request {sent} is lost: {error:?}"));
            assert_eq!(answer.status(), StatusCode::OK);
            sent += 1;
        }
        sent
    }
}

/// hyper's loop, as in the example. A branch of it resolves all the time, so `accept` is dropped and called again.
async fn hyper_loop(
    mut listener: AcceptUntilSignal<TcpListener>,
    app: Router,
    shutdown: impl Future<Output = ()>,
    closed: oneshot::Sender<()>,
) -> io::Result<()> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    let (mut shutdown, mut closed) = (pin!(shutdown), Some(closed));
    let mut often = interval(SECOND / 1000);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let stream = TokioIo::new(accepted?.0);
                let service = TowerToHyperService::new(app.clone());
                let connection = builder.serve_connection(stream, service).into_owned();
                let connection = connections.watch(connection);
                tokio::spawn(async move { drop(connection.await) });
            }
            _ = often.tick() => {
                if listener.get_ref().is_none() && let Some(closed) = closed.take() {
                    let _ = closed.send(());
                }
            }
            () = &mut shutdown => break,
        }
    }
    connections.shutdown().await;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Axum,
    Hyper,
}

/// Two servers accept from one listener. The first is told to stop, and its hooks take a while.
async fn hand_over(server: Server) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let shared = || TcpListener::from_std(listener.try_clone().unwrap()).unwrap();

    let (gate, over) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
    let first = ActiveSessions::builder()
        .drain_timeout(20 * SECOND)
        .on_session_end({
            let (gate, over) = (Arc::clone(&gate), Arc::clone(&over));
            move |end: SessionEnd| {
                let (gate, over) = (Arc::clone(&gate), Arc::clone(&over));
                async move {
                    gate.acquire().await.unwrap().forget();
                    over.lock().unwrap().push(end.session.id);
                }
            }
        })
        .build()
        .unwrap();
    let first_host = Host::default();
    let app = first_host.app(&first, "first");
    let ((signal, signalled), (tell_closed, closed)) = (oneshot::channel::<EndReason>(), oneshot::channel());
    let shutdown = first.shutdown_on(async { signalled.await.unwrap() });
    let finished = match server {
        Server::Axum => {
            let listener = first.accept_until_signal(Told { listener: shared(), closed: Some(tell_closed) });
            let server = axum::serve(listener, app).with_graceful_shutdown(shutdown);
            let finish = first.finish(server);
            tokio::spawn(async move { finish.await.into_result().unwrap() })
        }
        Server::Hyper => {
            let server = hyper_loop(first.accept_until_signal(shared()), app, shutdown, tell_closed);
            let finish = first.finish(server);
            tokio::spawn(async move { finish.await.into_result().unwrap() })
        }
    };

    let (recorder, second) = Recorder::sessions();
    let second_host = Host::default();
    let app = second_host.app(&second, "second");
    let (stop_second, second_stopped) = oneshot::channel::<()>();
    let server = axum::serve(shared(), app).with_graceful_shutdown(second.shutdown_on(second_stopped));
    let second_finish = second.finish(server);
    let second_finished = tokio::spawn(async move { second_finish.await.into_result().unwrap() });
    drop(listener);

    let clients = Clients { addr, is_late: Arc::default(), is_over: Arc::default() };
    let running: Vec<_> = (0..4).map(|_| tokio::spawn(clients.clone().run())).collect();
    let until = async |what: &str, condition: &dyn Fn() -> bool| {
        within(what, async {
            while !condition() {
                tokio::time::sleep(SECOND / 1000).await;
            }
        })
        .await;
    };
    until("both accept", &|| first_host.started() > 10 && second_host.started() > 10).await;
    signal.send(EndReason::Restart).unwrap();
    within("the end of accepting", closed).await.unwrap();
    clients.is_late.store(true, Ordering::SeqCst);
    // The hooks of the first run.
    let before = second_host.late();
    until("the second alone", &|| second_host.late() > before + 50).await;
    assert_eq!(first.phase(), Phase::Closing);
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    let report = within("the first", finished).await.unwrap();
    let before = second_host.late();
    until("the second goes on", &|| second_host.late() > before + 50).await;
    clients.is_over.store(true, Ordering::SeqCst);
    let mut sent = 0;
    for client in running {
        sent += client.await.unwrap();
    }
    assert_eq!(first_host.late(), 0, "sessions of connections that came after the signal");
    assert_eq!(first_host.started() + second_host.started(), sent);
    assert!(report.is_clean(), "{report}");
    assert_sum(&report.sessions);
    let mut ids = over.lock().unwrap().clone();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), over.lock().unwrap().len()), (first_host.started(), first_host.started()));
    stop_second.send(()).unwrap();
    let report = within("the second", second_finished).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ends().len(), second_host.started());
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g08_a_shared_listener_goes_to_the_successor_at_the_signal() {
    hand_over(Server::Axum).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g08_a_shared_listener_goes_to_the_successor_at_the_signal_in_a_loop_of_hyper() {
    hand_over(Server::Hyper).await;
}

/// More than the budget of a task.
const MANY: usize = 200;

/// Accepts until nothing more comes, and returns how many did.
async fn accepted<L>(listener: &mut AcceptUntilSignal<L>) -> usize
where
    L: Listener,
    AcceptUntilSignal<L>: Listener<Io = L::Io>,
{
    let mut streams = Vec::new();
    while let Ok((stream, _)) = timeout(SECOND, Listener::accept(listener)).await {
        streams.push(stream);
    }
    assert!(listener.get_ref().is_none() && listener.local_addr().is_err(), "it is still there");
    streams.len()
}

#[tokio::test]
async fn what_is_in_the_backlog_at_the_signal_is_accepted_and_then_the_listener_is_closed() {
    for inherent in [true, false] {
        let (_recorder, sessions) = Recorder::sessions();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut listener = sessions.accept_until_signal(socket.listen(1024).unwrap());
        let addr = listener.get_ref().unwrap().local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..MANY {
            // Blocking, so that the runtime has not heard of them.
            clients.push(std::net::TcpStream::connect(addr).unwrap());
        }
        let _ = sessions.drain(EndReason::Restart).await;
        if inherent {
            for _ in 0..MANY {
                within("the backlog", listener.accept()).await.unwrap();
            }
            assert!(timeout(SECOND / 10, listener.accept()).await.is_err());
            assert!(listener.get_ref().is_none());
        } else {
            assert_eq!(accepted(&mut listener).await, MANY);
        }
        assert!(TcpStream::connect(addr).await.is_err(), "it still listens");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn with_reuseport_each_process_takes_its_own_backlog() {
    let bind = |addr: SocketAddr| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(addr).unwrap();
        socket.listen(1024).unwrap()
    };
    let (_first, first) = Recorder::sessions();
    let mut first_listener = first.accept_until_signal(bind("127.0.0.1:0".parse().unwrap()));
    let addr = first_listener.get_ref().unwrap().local_addr().unwrap();
    let second_listener = bind(addr);
    let mut clients = Vec::new();
    for _ in 0..MANY {
        clients.push(within("connect", TcpStream::connect(addr)).await.unwrap());
    }
    let _ = first.drain(EndReason::Restart).await;
    let first_accepted = accepted(&mut first_listener).await;
    assert!(first_accepted > 0, "the system gave all of them to the second");
    for _ in first_accepted..MANY {
        within("the second", second_listener.accept()).await.unwrap();
    }
    within("the second alone", TcpStream::connect(addr)).await.unwrap();
}

#[tokio::test]
async fn g08_it_stops_accepting_in_the_lame_duck() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().lame_duck_timeout(3600 * SECOND).build().unwrap();
    let mut listener = sessions.accept_until_signal(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = listener.get_ref().unwrap().local_addr().unwrap();
    // An `accept` that waits already.
    let server = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let shutdown = tokio::spawn(sessions.shutdown_on(ready(())));
    within("refused", async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    })
    .await;
    assert_eq!(sessions.phase(), Phase::LameDuck);
    shutdown.abort();
    server.abort();
}

/// It is a listener like any other until then.
#[tokio::test]
async fn before_the_signal_it_accepts_as_the_listener_does() {
    let (_recorder, sessions) = Recorder::sessions();
    let mut listener = sessions.accept_until_signal(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = listener.local_addr().unwrap();
    for _ in 0..10 {
        let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        assert_eq!(client.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    }
    assert!(timeout(SECOND / 20, listener.accept()).await.is_err());
    assert!(listener.get_ref().is_some());
}
