//! The layer is transparent on the wire: the same bytes with and without it.

use std::net::SocketAddr;

use axum::{Router, http::HeaderValue, http::header::DATE, middleware::map_response, response::Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tower_sessions_example::{
    app,
    cookie_format::{COOKIE, CookieFormat},
    store::Store,
};

use crate::support::{Home, Host, PATIENCE, every_format, on_both_stores};

on_both_stores!(recorded_exchanges_are_the_same_with_and_without_the_layer);

const REQUESTS: [(&str, &str); 13] = [
    ("GET", "/"),
    ("POST", "/login/alice"),
    ("GET", "/"),
    ("HEAD", "/"),
    ("POST", "/say"),
    ("POST", "/cycle"),
    ("POST", "/say"),
    ("POST", "/broken"),
    ("POST", "/logout"),
    ("GET", "/public"),
    ("POST", "/login/bob/many"),
    ("POST", "/login/bob/redirect"),
    ("DELETE", "/login/bob"),
];

/// Sets a fixed date, so that two recordings are equal.
fn dated(app: Router) -> Router {
    app.layer(map_response(async |mut response: Response| {
        response.headers_mut().insert(DATE, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
        response
    }))
}

/// Sends all requests, with the last cookie, and returns the answers. `#` replaces the bytes that differ between two
/// recordings: the ids, and the time of a removal.
async fn record(address: SocketAddr) -> Vec<String> {
    let mut cookie = None::<String>;
    let mut answers = Vec::new();
    for (method, path) in REQUESTS {
        let sent = cookie.as_ref().map(|cookie| format!("cookie: theme=dark; {COOKIE}={cookie}; lang=en\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{}content-length: 0\r\nconnection: close\r\n\r\n",
            sent.unwrap_or_default(),
        );
        let mut client = timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
        let mut answer = String::from_utf8(answer).unwrap();
        if let Some((_, rest)) = answer.split_once(&format!("set-cookie: {COOKIE}=")) {
            let value = rest.split(';').next().unwrap().to_owned();
            if !value.is_empty() {
                answer = answer.replace(&value, &"#".repeat(value.len()));
            }
            // A removal has an expiry date, a year ago.
            if let Some((_, rest)) = answer.split_once("Expires=") {
                let expires = rest.split([';', '\r']).next().unwrap().to_owned();
                answer = answer.replace(&expires, &"#".repeat(expires.len()));
            }
            cookie = Some(value).filter(|value| !value.is_empty());
        }
        answers.push(answer);
    }
    answers
}

async fn recorded_exchanges_are_the_same_with_and_without_the_layer(home: &Home) {
    for format in every_format() {
        let without = record_of(home, |_, store, format| app::host(store, format), &format, "").await;
        let set = without.iter().filter(|answer| answer.contains(&format!("set-cookie: {COOKIE}="))).count();
        // Two logins, two changes, one rotation, one logout, and the second login of Bob changes nothing.
        assert_eq!(set, 6, "{without:#?}");
        assert!(without[4].ends_with("alice 1") && without[6].ends_with("alice 2"), "{without:#?}");
        for order in [app::outside, app::inside] {
            let with = record_of(home, order, &format, "compaction 1, deleted 1, shutdown 1").await;
            for ((request, with), without) in REQUESTS.iter().zip(with).zip(&without) {
                assert!(without.starts_with("HTTP/1.1 "), "{request:?}: {without}");
                assert_eq!(with, *without, "{request:?}, {format:?}");
            }
        }
    }
}

/// Records the exchanges of a host, and checks that its layer was active.
async fn record_of(
    home: &Home,
    app: impl FnOnce(&tower_session_end::ActiveSessions, &Store, &CookieFormat) -> Router,
    format: &CookieFormat,
    events: &str,
) -> Vec<String> {
    let host = Host::start(|sessions| dated(app(sessions, &home.store, format))).await;
    let recorded = record(host.address).await;
    assert_eq!(host.stop().await.summary(), events);
    recorded
}
