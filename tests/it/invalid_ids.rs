//! Header bytes of every value, ids of every length: nothing panics, and what is no id is ignored and counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::support::{Recorder, Running, answer, ask, exchange, say, serve};
use http::HeaderValue;
use tower_session_end::{ActiveSessions, HeaderProtocol, SessionId};
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

const ID: &str = "x-session-id";
const END: &str = "x-session-end";
const FROM: &str = "x-session-compacted-from";

/// Counts the warnings of one name.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicU64>);

impl Subscriber for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if event.metadata().name() == "session-id-ignored" && *event.metadata().level() == tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Every value of a header that `http` lets through and that has this byte in it, in three places.
fn values() -> impl Iterator<Item = (bool, HeaderValue)> {
    (0..=u8::MAX).flat_map(|byte| {
        let texts = [vec![byte], vec![b'a', byte], vec![byte, b'z'], vec![b'x', byte, b'x']];
        texts.into_iter().filter_map(move |text| {
            let value = HeaderValue::from_bytes(&text).ok()?;
            Some(((0x21..=0x7e).contains(&byte), value))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn g04_every_header_byte_is_an_id_or_ignored_counted_and_said_once() {
    let warnings = Warnings::default();
    let _subscriber = crate::support::logging::listen(warnings.clone());
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let (mut valid, mut invalid) = (std::collections::BTreeSet::new(), 0);
    for (is_valid, value) in values().chain([(false, HeaderValue::from_static(""))]) {
        let mut response = answer(200, &[]);
        response.headers_mut().insert(ID, value.clone());
        let response = exchange(&layer, ask(&[]), response).await;
        assert_eq!(response.headers()[ID], value, "not the layer's to change");
        if is_valid {
            valid.insert(value.to_str().unwrap().to_owned());
        } else {
            invalid += 1;
        }
    }
    // Space, tab and 128 bytes beyond ASCII, four times each, and nothing at all.
    assert_eq!(invalid, (1 + 1 + 128) * 4 + 1);
    assert_eq!(sessions.ignored_ids(), invalid);
    assert_eq!(warnings.0.load(Ordering::SeqCst), 1);
    let ended: Vec<_> = recorder.ended_after_drain(&sessions).await;
    let mut expected: Vec<_> = valid.iter().map(|id| format!("{id} shutdown")).collect();
    expected.sort();
    assert_eq!(ended, expected);
}

#[tokio::test(start_paused = true)]
async fn g04_no_byte_in_a_request_or_a_control_header_panics() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    for (_, value) in values() {
        let mut request = ask(&[]);
        request.headers_mut().insert(ID, value.clone());
        request.headers_mut().insert(END, value.clone());
        let mut response = answer(200, &[]);
        response.headers_mut().insert(END, value.clone());
        response.headers_mut().insert(FROM, value.clone());
        exchange(&layer, request, response).await;
    }
    assert!(sessions.is_empty());
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn g04_an_old_id_that_is_no_id_is_counted_and_the_successor_noted() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    say(&layer, &[], &[(ID, "new"), (FROM, "two words")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown"]);
    assert_eq!(sessions.ignored_ids(), 1);
}

#[tokio::test(start_paused = true)]
async fn g04_ids_are_as_long_as_the_limit_and_no_longer() {
    for len in [1, 37, 38, 39, 40, 1023, 1024] {
        let (recorder, sessions) = Recorder::sessions();
        let id = "i".repeat(len);
        say(&sessions.layer(), &[], &[(ID, &id)]).await;
        say(&sessions.layer(), &[(ID, &id)], &[(END, "reset")]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("{id} reset")], "{len}");
        assert_eq!(sessions.ignored_ids(), 0, "{len}");
    }
    for len in [1025, 64 * 1024] {
        let (recorder, sessions) = Recorder::sessions();
        say(&sessions.layer(), &[], &[(ID, &"i".repeat(len))]).await;
        assert_eq!(sessions.ignored_ids(), 1, "{len}");
        assert!(recorder.ended_after_drain(&sessions).await.is_empty(), "{len}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_protocol_has_a_limit_of_its_own() {
    let long = "l".repeat(64 * 1024);
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(HeaderProtocol::new().max_id_len(64 * 1024));
    say(&layer, &[], &[(ID, &long)]).await;
    say(&layer, &[], &[(ID, &format!("{long}l"))]).await;
    assert_eq!((sessions.len(), sessions.ignored_ids()), (1, 1));
    say(&layer, &[(ID, &long)], &[(END, "reset")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("{long} reset")]);

    let sessions = ActiveSessions::builder().build().unwrap();
    let layer = sessions.layer_with(HeaderProtocol::new().max_id_len(8));
    say(&layer, &[], &[(ID, "eight888")]).await;
    say(&layer, &[], &[(ID, "nine99999")]).await;
    assert!(sessions.contains("eight888") && !sessions.contains("nine99999"));
}

#[tokio::test(start_paused = true)]
async fn g01_ids_that_differ_in_one_byte_are_different_sessions() {
    for len in [1, 8, 38, 39, 1024] {
        let (recorder, sessions) = Recorder::sessions();
        let layer = sessions.layer();
        let base = vec![b'a'; len];
        let mut ids = vec![base.clone()];
        // Some places, the first and the last among them.
        for position in (0..len).step_by(1 + len / 16).chain([len - 1]) {
            let mut id = base.clone();
            id[position] = b'b';
            ids.push(id);
        }
        ids.dedup();
        let ids: Vec<_> = ids.into_iter().map(|id| String::from_utf8(id).unwrap()).collect();
        for id in &ids {
            say(&layer, &[], &[(ID, id)]).await;
        }
        let ends = ids.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(sessions.len(), ends, "{len}");
        say(&layer, &[(ID, &ids[0])], &[(END, "reset")]).await;
        let ended = recorder.ended_after_drain(&sessions).await;
        assert_eq!(ended.len(), ends, "{len}");
        let resets: Vec<_> = ended.iter().filter(|end| end.ends_with(" reset")).collect();
        assert_eq!(resets, [&format!("{} reset", ids[0])], "{len}");
    }
}

#[tokio::test]
async fn g04_bytes_beyond_ascii_on_the_wire_harm_nobody() {
    use axum::{Router, http::HeaderMap, routing::post};
    let (recorder, sessions) = Recorder::sessions();
    // A host that repeats whatever it gets.
    let echo = async |headers: HeaderMap| {
        let mut answer = HeaderMap::new();
        if let Some(id) = headers.get(ID) {
            answer.insert(ID, id.clone());
        }
        answer
    };
    let server: Running = serve(&sessions, Router::new().route("/", post(echo)).layer(sessions.layer())).await;
    for byte in (0x20..=u8::MAX).filter(|byte| *byte != 0x7f) {
        let mut client = crate::support::Raw::connect(server.addr).await;
        let mut request = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-session-id: a".to_vec();
        request.push(byte);
        request.extend(b"z\r\n\r\n");
        client.write(request).await;
        let response = client.rest().await;
        assert!(response.starts_with(b"HTTP/1.1 200 "), "{byte:#x}");
    }
    assert_eq!(sessions.len(), 0x7e - 0x20);
    let ended: Vec<_> = (0x21..=0x7e_u8).map(|byte| format!("a{}z shutdown", char::from(byte))).collect();
    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ended);
}

#[test]
fn an_id_is_never_whole_in_a_log() {
    let id = SessionId::new("a".repeat(500)).unwrap();
    assert!(format!("{id:?}").len() < 40);
}
