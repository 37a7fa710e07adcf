//! A plugin in the test process: the minimal receiver with injected faults, which records every call.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header::RETRY_AFTER},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use memory_plugin::receiver::{self, Store};
use serde_json::Value;
use tokio::net::TcpListener;

/// The faults of the plugin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// This number of attempts of each call is answered with this status.
    pub(crate) failing: Option<(usize, u16)>,
    /// After those, this number of attempts of each call has no answer.
    pub(crate) hanging: usize,
    /// The delay of every answer.
    pub(crate) delay: Duration,
    /// So many calls are accepted in each time of this length. Others are answered with 429, and with the rest of the
    /// time in `Retry-After`.
    pub(crate) rule: Option<(usize, Duration)>,
    /// The path under which the plugin is mounted.
    pub(crate) prefix: &'static str,
}

/// The calls, in order.
#[derive(Clone)]
pub(crate) struct Log {
    faults: Faults,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Of the rule: when the present time began, and how many calls have come in it.
    window: Arc<Mutex<Option<(Instant, usize)>>>,
    pub(crate) store: Store,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    /// `init` or `complete`.
    pub(crate) call: String,
    pub(crate) body: Value,
    pub(crate) at: Instant,
    /// `None` until it is answered.
    pub(crate) status: Option<StatusCode>,
}

impl Log {
    /// Starts a plugin, and returns it and its URL.
    pub(crate) async fn start(faults: Faults) -> (Self, String) {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let log = Self { faults, entries: Arc::default(), window: Arc::default(), store };
        let router = receiver::router(log.store.clone()).layer(from_fn_with_state(log.clone(), write_down));
        let app = if faults.prefix.is_empty() { router } else { Router::new().nest(faults.prefix, router) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{}", listener.local_addr().unwrap(), faults.prefix);
        tokio::spawn(async move { axum::serve(listener, app).await });
        (log, url)
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// The number of answers with this status.
    pub(crate) fn answered(&self, status: StatusCode) -> usize {
        self.entries().iter().filter(|entry| entry.status == Some(status)).count()
    }

    /// The rest of the time of the rule, if its calls are used up.
    fn refused(&self) -> Option<Duration> {
        let (calls, time) = self.faults.rule?;
        let mut window = self.window.lock().unwrap();
        let (began, count) = match *window {
            Some((began, count)) if began.elapsed() < time => (began, count + 1),
            _ => (Instant::now(), 1),
        };
        *window = Some((began, count));
        (count > calls).then(|| time.saturating_sub(began.elapsed()))
    }

    /// The accepted calls of each session, in order: `+` for an `init`, `-` for a `complete`.
    pub(crate) fn accepted(&self) -> BTreeMap<String, String> {
        self.order(|entry| entry.status == Some(StatusCode::OK))
    }

    /// As [`accepted`](Self::accepted), for every attempt.
    pub(crate) fn tried(&self) -> BTreeMap<String, String> {
        self.order(|_| true)
    }

    fn order(&self, filter: impl Fn(&Entry) -> bool) -> BTreeMap<String, String> {
        let mut order = BTreeMap::<_, String>::new();
        for entry in self.entries().into_iter().filter(filter) {
            order.entry(entry.id).or_default().push(if entry.call == "init" { '+' } else { '-' });
        }
        order
    }

    /// The body of the `init` of a session.
    pub(crate) fn init(&self, id: &str) -> Value {
        let entries = self.entries();
        entries
            .iter()
            .find(|entry| entry.id == id && entry.call == "init")
            .expect("the session must have an `init`")
            .body
            .clone()
    }

    /// Asserts that no session is active, and that every `init` was followed by one `complete`.
    pub(crate) async fn assert_all_completed(&self, ids: &[String]) {
        let accepted = self.accepted();
        for (id, order) in &accepted {
            assert_eq!(*order, "+-".repeat(order.len() / 2), "{id}");
            assert_eq!(self.store.status(id).await.unwrap().as_deref(), Some("completed"), "{id}");
        }
        for id in ids {
            assert!(accepted.contains_key(id), "{id} has no `init`");
        }
        assert_eq!(self.store.active().await.unwrap(), 0);
    }
}

async fn write_down(State(log): State<Log>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let call = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    let id = body["contentSessionId"].as_str().unwrap().to_owned();
    let (index, number) = {
        let mut entries = log.entries.lock().unwrap();
        entries.push(Entry { id: id.clone(), call: call.clone(), body, at: Instant::now(), status: None });
        (entries.len() - 1, entries.iter().filter(|entry| entry.id == id && entry.call == call).count())
    };
    let Faults { failing, hanging, delay, rule: _, prefix: _ } = log.faults;
    tokio::time::sleep(delay).await;
    let (fails, status) = failing.unwrap_or_default();
    let response = if let Some(rest) = log.refused() {
        let seconds = rest.as_secs() + 1;
        (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, seconds.to_string())], "too many\n").into_response()
    } else if number <= fails {
        (StatusCode::from_u16(status).unwrap(), "not now\n").into_response()
    } else if number <= fails + hanging {
        std::future::pending().await
    } else {
        next.run(Request::from_parts(parts, Body::from(bytes))).await
    };
    log.entries.lock().unwrap()[index].status = Some(response.status());
    response
}
