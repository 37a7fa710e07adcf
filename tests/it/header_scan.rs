//! Heads of every length: our headers are found wherever they stand, by the preset and by whoever wraps it.

use crate::support::{Recorder, say};
use http::{HeaderName, request, response};
use tower_session_end::{EndReason, HeaderProtocol, RequestInfo, SessionId, SessionProtocol, SessionUpdate};

/// Known names, unknown ones, and some as long as ours.
const OTHERS: [&str; 17] = [
    "host",
    "accept",
    "x-request-id",
    "user-agent",
    "x-session-of",
    "content-type",
    "x-session-owns",
    "dnt",
    "x-session-compacted-onto",
    "cookie",
    "cache-control",
    "x-forwarded-for",
    "origin",
    "te",
    "x-session-ie",
    "referer",
    "traceparent",
];

/// So many other headers, with this one in that place; with `repeats`, some of the others come twice.
fn head<'a>(others: usize, place: usize, ours: (&'a str, &'a str), repeats: bool) -> Vec<(&'a str, &'a str)> {
    let mut head: Vec<_> = OTHERS[..others].iter().map(|name| (*name, "value")).collect();
    head.insert(place, ours);
    if repeats {
        head.extend(OTHERS[..others].iter().step_by(3).map(|name| (*name, "again")));
    }
    head
}

/// As the preset, but for the layer a stranger.
struct Stranger(HeaderProtocol);

impl SessionProtocol for Stranger {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.0.request_id(request)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.0.response(request, response)
    }
}

/// A birth, an echo and an end, for every length of a head and every place in it.
async fn live_and_die(protocol: impl SessionProtocol, [id_header, end_header]: [&str; 2]) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(protocol);
    let mut lives = 0;
    for others in 0..=OTHERS.len() {
        for place in 0..=others {
            for repeats in [false, true] {
                lives += 1;
                let id = format!("s{lives}");
                let silence = &head(others, place, ("x-nothing", "at all"), repeats);
                let ours = &head(others, place, (id_header, &id), repeats);
                say(&layer, silence, silence).await;
                assert!(sessions.is_empty(), "{silence:?}");
                say(&layer, silence, ours).await;
                say(&layer, ours, ours).await;
                assert!(sessions.contains(&id) && sessions.len() == 1, "{ours:?}");
                say(&layer, ours, &head(others, place, (end_header, "deleted"), repeats)).await;
                assert!(sessions.is_empty(), "{ours:?}");
            }
        }
    }
    assert_eq!(recorder.ended_after_drain(&sessions).await.len(), lives);
    assert!(recorder.ends().iter().all(|end| end.reason == EndReason::Deleted && end.requests == 2));
}

#[tokio::test(start_paused = true)]
async fn the_default_headers_are_found_wherever_they_stand() {
    let names = ["x-session-id", "x-session-end"];
    live_and_die(HeaderProtocol::new(), names).await;
    live_and_die(Stranger(HeaderProtocol::new()), names).await;
}

#[tokio::test(start_paused = true)]
async fn renamed_headers_are_found_wherever_they_stand() {
    // One that nobody knows, and one that everybody does.
    let names = ["x-conversation", "server"];
    let [id, end] = names.map(HeaderName::from_static);
    let renamed = || HeaderProtocol::new().id_header(id.clone()).end_header(end.clone());
    live_and_die(renamed(), names).await;
    live_and_die(Stranger(renamed()), names).await;
}
