//! The second storm: streams, sockets, slow requests and clients that vanish, while hooks fail and the stop comes.
//!
//! Three rounds; `STORM_ROUNDS=50` for the long form, `STORM_SEED` to repeat one that failed.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioIo,
};
use support::{Event, Random, Recorder, assert_sum, h1_client, h2_client, serve, storm_seeds, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::Notify,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_session_end::{ActiveSessions, BoxError, EndReason, Phase, SessionEnd, SessionId, SessionStart};

const CLIENTS: u64 = 500;
/// Clients that share one connection over HTTP/2, each with streams of its own.
const SHARING: u64 = 25;
const DRAIN: Duration = Duration::from_secs(2);
/// What a busy machine may add to the budgets.
const SLACK: Duration = Duration::from_secs(1);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The gateway, and what it did.
struct Host {
    sessions: ActiveSessions,
    ids: AtomicU64,
    /// Ids of sessions that a head opened.
    opened: Mutex<BTreeSet<String>>,
    /// Ids that a guard was made for.
    guarded: Mutex<BTreeSet<String>>,
    /// Requests of clients that stay, and heads that the layer let out for them.
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Host {
    fn new(sessions: &ActiveSessions) -> Arc<Self> {
        Arc::new(Self {
            sessions: sessions.clone(),
            ids: AtomicU64::new(0),
            opened: Mutex::default(),
            guarded: Mutex::default(),
            begun: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    fn new_id(&self) -> String {
        format!("s-{}", self.ids.fetch_add(1, SeqCst))
    }

    fn app(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/{what}/{wait}/{chunks}", post(answer))
            .route("/events", get(events))
            .route("/socket", get(socket))
            .with_state(Arc::clone(self))
            .layer(self.sessions.layer())
            .layer(from_fn_with_state(Arc::clone(self), watch))
    }
}

/// Sees what goes into the layer and what it lets out, whether or not the client comes to see it.
async fn watch(State(host): State<Arc<Host>>, request: Request, next: Next) -> Response {
    let stays = u64::from(request.headers().contains_key("x-stays"));
    host.begun.fetch_add(stays, SeqCst);
    let response = next.run(request).await;
    host.answered.fetch_add(stays, SeqCst);
    if response.status() == StatusCode::OK && response.headers().contains_key("x-opened") {
        let id = response.headers()["x-session-id"].to_str().unwrap().to_owned();
        assert!(host.opened.lock().unwrap().insert(id), "the host repeated itself");
    }
    response
}

/// Opens, compacts, ends or chats, after a while, and with a body that dribbles.
async fn answer(
    State(host): State<Arc<Host>>,
    Path((what, wait, chunks)): Path<(String, u64, u64)>,
    id: Option<SessionId>,
    _: Bytes,
) -> Response {
    if wait == 0 {
        yield_now().await
    } else {
        sleep(millis(wait)).await
    }
    let response = match (&*what, &id) {
        ("open", _) => Response::builder().header("x-session-id", host.new_id()).header("x-opened", ""),
        ("compact", Some(old)) => {
            let response = Response::builder().header("x-session-id", host.new_id()).header("x-opened", "");
            response.header("x-session-compacted-from", old.as_str())
        }
        ("end", Some(_)) => Response::builder().header("x-session-end", "deleted"),
        (_, Some(id)) => Response::builder().header("x-session-id", id.as_str()),
        (_, None) => Response::builder(),
    };
    let dribble = stream::iter(0..chunks).then(async |_| {
        sleep(millis(10)).await;
        Ok::<_, BoxError>("and so on to the ")
    });
    let body = dribble.chain(stream::iter([Ok("end")]));
    response.body(if chunks == 0 { "end".into() } else { Body::from_stream(body) }).unwrap()
}

/// Has something to say now and then, for ever.
async fn events(id: Option<SessionId>) -> Response {
    let words = stream::repeat("data: word\n\n").then(async |word| {
        sleep(millis(25)).await;
        Ok::<_, BoxError>(word)
    });
    let mut response = Response::builder().header("content-type", "text/event-stream");
    if let Some(id) = id {
        response = response.header("x-session-id", id.as_str());
    }
    response.body(Body::from_stream(stream::iter([Ok("data: hello\n\n")]).chain(words))).unwrap()
}

/// A guard until the client or the stop ends it, on the session of the request or on a new one.
async fn socket(State(host): State<Arc<Host>>, id: Option<SessionId>, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let id = id.map_or_else(|| host.new_id(), |id| id.to_string());
    host.guarded.lock().unwrap().insert(id.clone());
    let guard = host.sessions.guard(id.as_str());
    tokio::spawn(async move {
        if let Ok(socket) = upgrade.await {
            let mut socket = TokioIo::new(socket);
            tokio::select! {
                _ = socket.read_u8() => drop(guard.end(EndReason::Reset)),
                () = guard.closing() => {}
            }
        }
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("x-session-id", id);
    response.header("connection", "upgrade").header("upgrade", "words").body(Body::empty()).unwrap()
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    answers: AtomicU64,
    /// Told at every answer.
    news: Notify,
    /// Heads that came to clients that stay.
    heads: AtomicU64,
    /// Bodies that were torn or not whole, of clients that stay.
    torn: AtomicU64,
    /// Streams that ended before there was a stop.
    early: AtomicU64,
    /// Those that came to their end.
    streams: AtomicU64,
    opened: Mutex<BTreeSet<String>>,
}

#[derive(Clone)]
struct Guest {
    base: String,
    client: Client<HttpConnector, Body>,
    sessions: ActiveSessions,
    seen: Arc<Seen>,
}

impl Guest {
    /// The head, if there was an answer of the host's.
    async fn ask(
        &self,
        request: http::request::Builder,
        body: Body,
        stays: bool,
    ) -> Option<Response<hyper::body::Incoming>> {
        let request = if stays { request.header("x-stays", "") } else { request };
        let response = within("an answer", self.client.request(request.body(body).unwrap())).await.ok()?;
        self.seen.heads.fetch_add(u64::from(stays), SeqCst);
        self.seen.answers.fetch_add(1, SeqCst);
        self.seen.news.notify_one();
        if response.headers().contains_key("x-opened") {
            let id = response.headers()["x-session-id"].to_str().unwrap().to_owned();
            self.seen.opened.lock().unwrap().insert(id);
        }
        matches!(response.status(), StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS).then_some(response)
    }

    fn request(&self, method: &str, path: &str, id: Option<&str>) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(id) = id { request.header("x-session-id", id) } else { request }
    }

    /// One request, from which the client may vanish; false if nobody is there any more.
    async fn call(&self, path: &str, id: &mut Option<String>, vanishes_after: Option<u64>) -> bool {
        let request = self.request("POST", path, id.as_deref());
        let stays = vanishes_after.is_none();
        let body = match vanishes_after {
            Some(time) if time % 2 == 0 => {
                Body::from_stream(stream::iter([Ok("half")]).chain(stream::pending::<Result<_, BoxError>>()))
            }
            _ => Body::empty(),
        };
        let exchange = async {
            let Some(response) = self.ask(request, body, stays).await else { return false };
            *id = response.headers().get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
            let whole = within("a body", response.into_body().collect()).await;
            let is_whole = whole.is_ok_and(|body| body.to_bytes().ends_with(b"end"));
            self.seen.torn.fetch_add(u64::from(stays && !is_whole), SeqCst);
            true
        };
        match vanishes_after {
            None => exchange.await,
            Some(time) => timeout(millis(time), exchange).await.unwrap_or(true),
        }
    }

    /// Holds an event stream until it ends, or vanishes. If nobody but the stop ends its session, it lasts until then.
    async fn listen(self, id: Option<String>, is_nobody_elses: bool, vanishes_after: Option<u64>) {
        let request = self.request("GET", "/events", id.as_deref());
        let stream = async {
            let response = self.ask(request, Body::empty(), vanishes_after.is_none()).await?;
            Some(within("the end of a stream", response.into_body().collect()).await)
        };
        let Some(time) = vanishes_after else {
            let Some(whole) = stream.await else { return };
            let is_clean = whole.is_ok_and(|body| body.to_bytes().ends_with(b"\n\n"));
            self.seen.streams.fetch_add(1, SeqCst);
            self.seen.torn.fetch_add(u64::from(!is_clean), SeqCst);
            let is_early = is_nobody_elses && self.sessions.phase() < Phase::Closing;
            self.seen.early.fetch_add(u64::from(is_early), SeqCst);
            return;
        };
        let _ = timeout(millis(time), stream).await;
    }

    /// Opens, chats, compacts, ends, listens and vanishes, until the server is gone.
    async fn talk(self, mut random: Random) {
        let mut streams = JoinSet::new();
        let mut id = None;
        loop {
            let what = match (&id, random.below(8)) {
                (None, _) => "open",
                (Some(_), 0) => "end",
                (Some(_), 1) => "compact",
                // It forgets its session, which is then the drain's to end.
                (Some(_), 2) => {
                    id = None;
                    "open"
                }
                (Some(_), _) => "chat",
            };
            if streams.is_empty() && random.one_in(8) {
                let vanishes_after = random.one_in(3).then(|| random.below(100));
                streams.spawn(self.clone().listen(id.clone(), id.is_none(), vanishes_after));
            }
            let wait = if random.one_in(5) { 10 + random.below(140) } else { 0 };
            let chunks = if random.one_in(5) { random.below(15) } else { 0 };
            let vanishes_after = random.one_in(8).then(|| random.below(40));
            // An impatient one asks twice at the same time.
            let (mut again, twice) = (id.clone(), id.is_some() && random.one_in(2));
            let also = async { !twice || self.call("/chat/0/2", &mut again, None).await };
            let path = format!("/{what}/{wait}/{chunks}");
            let (first, second) = tokio::join!(self.call(&path, &mut id, vanishes_after), also);
            while streams.try_join_next().is_some() {}
            if !(first && second) {
                break;
            }
        }
        drop(streams.join_all().await);
    }

    /// A stream with a session of its own, or with none.
    async fn only_listen(self, mut random: Random) {
        let mut id = None;
        if random.one_in(3) || self.call("/open/0/0", &mut id, None).await {
            self.listen(id, true, None).await;
        }
    }

    /// Sockets, one after the other.
    async fn hold_sockets(self, mut random: Random) {
        let mut id = None;
        // On the same session again and again, with talk in between, or each on a new one.
        let has_own = random.one_in(2);
        while !has_own || self.call("/chat/0/0", &mut id, None).await {
            let request = self.request("GET", "/socket", id.as_deref());
            let request = request.header("connection", "upgrade").header("upgrade", "words");
            let Some(response) = self.ask(request, Body::empty(), true).await else { return };
            if has_own {
                id = response.headers().get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
            }
            let Ok(socket) = within("the upgrade", hyper::upgrade::on(response)).await else { continue };
            let time = if random.one_in(3) { u64::MAX } else { random.below(60) };
            let _ = within("a socket", timeout(millis(time), TokioIo::new(socket).read_u8())).await;
        }
    }
}

/// Leaves half a request head until then; the rest of it comes too late.
async fn hesitate(base: String, then: impl Future<Output = ()>, is_stubborn: bool) {
    let Ok(mut stream) = TcpStream::connect(base.trim_start_matches("http://")).await else { return };
    let half = stream.write_all(b"POST /open/0/0 HTTP/1.1\r\nhost: here\r\ncontent-le").await;
    within("the stop", then).await;
    if is_stubborn && half.is_ok() && stream.write_all(b"ngth: 0\r\n\r\n").await.is_ok() {
        let mut answer = Vec::new();
        let _ = within("a refusal", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&answer));
    }
}

/// Mostly fine; some are slow, err, or panic.
async fn moody(number: u64) -> Result<(), &'static str> {
    match number % 16 {
        0 => std::panic::resume_unwind(Box::new("a hook in a bad mood")),
        1 => return Err("no"),
        2 | 3 => sleep(millis(number / 16 % 16)).await,
        _ => yield_now().await,
    }
    Ok(())
}

async fn round(seed: u64) {
    let mut random = Random::new(seed);
    let recorder = Recorder::default();
    let is_stubborn = random.one_in(4);
    let lame_duck = millis(if random.one_in(3) { 50 } else { 0 });
    let connection_drain = millis(if is_stubborn { 1500 } else { 3000 });
    let mut builder = recorder
        .hooks(ActiveSessions::builder())
        .on_session_start(async |start: SessionStart| moody(number(start.session.id.as_str()) + 4).await)
        .on_session_end(async |end: SessionEnd| moody(number(end.session.id.as_str())).await)
        .drain_timeout(DRAIN)
        .connection_drain_timeout(connection_drain)
        .lame_duck(lame_duck);
    let (settles, is_small) = (random.one_in(2), random.one_in(3));
    if settles {
        builder = builder.settle_timeout(millis(300));
    }
    if is_small {
        builder = builder.max_sessions(60).idle_timeout(millis(50));
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
        let guest = Guest { base: base.clone(), client, sessions: sessions.clone(), seen: Arc::clone(&seen) };
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
        client.unwrap();
    }

    let (starts, ends) = (recorder.starts(), recorder.ends());
    let mut reasons = BTreeMap::<String, u64>::new();
    ends.iter().for_each(|end| *reasons.entry(end.reason.to_string()).or_default() += 1);
    let streams = seen.streams.load(SeqCst);
    let about = format!(
        "seed {seed}, settles {settles}, small {is_small}, stubborn {is_stubborn}; stopped after {moment} answers, \
         over after {elapsed:.1?}; {} births, {reasons:?}, {streams} streams; {report}",
        starts.len(),
    );
    println!("{about}");

    // The budgets.
    assert!(elapsed <= lame_duck + DRAIN + connection_drain + SLACK, "{about}");
    assert_eq!(report.connections.cut, is_stubborn, "{about}");
    assert_eq!(report.connections.open_responses, 0, "{about}");
    assert!(report.signalled && sessions.is_empty() && sessions.phase() == Phase::Closed, "{about}");

    // The ends.
    let started: BTreeSet<_> = starts.iter().map(|start| (start.event_id, start.session.id.to_string())).collect();
    let ended: BTreeSet<_> = ends.iter().map(|end| (end.event_id, end.session.id.to_string())).collect();
    assert_eq!((started.len(), ended.len()), (starts.len(), ends.len()), "an event came twice; {about}");
    assert!(started == ended, "{:?}; {about}", started.symmetric_difference(&ended).collect::<Vec<_>>());
    let (opened, guarded) = (host.opened.lock().unwrap(), host.guarded.lock().unwrap());
    let owed: BTreeSet<_> = opened.union(&guarded).cloned().collect();
    let ids: BTreeSet<_> = ended.into_iter().map(|(_, id)| id).collect();
    assert!(ids == owed, "{:?}; {about}", ids.symmetric_difference(&owed).collect::<Vec<_>>());
    assert!(seen.opened.lock().unwrap().is_subset(&opened), "{about}");
    let mut last = BTreeMap::<String, Option<EndReason>>::new();
    for event in recorder.events() {
        let before = last.entry(event.id().to_owned());
        match event {
            Event::Start(start) => {
                // Nothing but a guard revives what the host, or the stop, has ended.
                let id = start.session.id.as_str();
                let is_fine = |reason| matches!(reason, EndReason::Idle | EndReason::Evicted) || guarded.contains(id);
                let before = before.or_insert(Some(EndReason::Idle));
                assert!(before.take().is_some_and(is_fine), "{id}: a start too many, or too early; {about}");
            }
            Event::End(end) => assert!(before.or_default().replace(end.reason).is_none(), "two ends in a row; {about}"),
        }
    }

    // The report.
    assert_sum(&report.drain);
    assert_sum(&report.sessions);
    assert!(report.sessions.unfinished.is_empty() && !report.drain.timed_out, "{about}");
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
fn number(id: &str) -> u64 {
    id["s-".len()..].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g01_g02_g08_g10_streams_sockets_and_vanishing_clients_in_a_stop() {
    for seed in storm_seeds() {
        round(seed).await;
    }
}
