//! The clients of the storm, and what they see.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_session_end::{ActiveSessions, BoxError, Phase};

use super::millis;
use crate::support::{Random, within};

/// For an answer, once the server is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) answers: AtomicU64,
    /// Told at every answer.
    pub(crate) news: Notify,
    /// Heads that came to clients that stay.
    pub(crate) heads: AtomicU64,
    /// Bodies that were torn or not whole, of clients that stay.
    pub(crate) torn: AtomicU64,
    /// Streams that ended before there was a stop.
    pub(crate) early: AtomicU64,
    /// Requests that came to nobody, and were given up after `finish`.
    pub(crate) unheard: AtomicU64,
    /// Streams that came to their end.
    pub(crate) streams: AtomicU64,
    pub(crate) opened: Mutex<BTreeSet<String>>,
}

#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) base: String,
    pub(crate) client: Client<HttpConnector, Body>,
    pub(crate) sessions: ActiveSessions,
    pub(crate) seen: Arc<Seen>,
    /// Set after `finish`.
    pub(crate) over: CancellationToken,
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
        let what = format!("an answer to {:?}", request.uri_ref());
        let answer = within(&what, self.client.request(request.body(body).unwrap()));
        let response = tokio::select! {
            response = answer => response.ok()?,
            // A client may fail to learn that nobody listens any more. What came to the host is counted there.
            () = self.is_over() => {
                self.seen.unheard.fetch_add(1, SeqCst);
                return None;
            }
        };
        self.seen.heads.fetch_add(u64::from(stays), SeqCst);
        self.seen.answers.fetch_add(1, SeqCst);
        self.seen.news.notify_one();
        if response.headers().contains_key("x-opened") {
            let id = response.headers()["x-session-id"].to_str().unwrap().to_owned();
            self.seen.opened.lock().unwrap().insert(id);
        }
        matches!(response.status(), StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS).then_some(response)
    }

    async fn is_over(&self) {
        self.over.cancelled().await;
        sleep(PATIENCE).await;
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
    pub(crate) async fn talk(self, mut random: Random) {
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
    pub(crate) async fn only_listen(self, mut random: Random) {
        let mut id = None;
        if random.one_in(3) || self.call("/open/0/0", &mut id, None).await {
            self.listen(id, true, None).await;
        }
    }

    /// Sockets, one after the other.
    pub(crate) async fn hold_sockets(self, mut random: Random) {
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
pub(crate) async fn hesitate(base: String, then: impl Future<Output = ()>, is_stubborn: bool) {
    let Ok(mut stream) = TcpStream::connect(base.trim_start_matches("http://")).await else { return };
    let half = stream.write_all(b"POST /open/0/0 HTTP/1.1\r\nhost: here\r\ncontent-le").await;
    within("the stop", then).await;
    if is_stubborn && half.is_ok() && stream.write_all(b"ngth: 0\r\n\r\n").await.is_ok() {
        let mut answer = Vec::new();
        let _ = within("a refusal", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&answer));
    }
}
