//! The vocabulary: the JSON contract of the events, the words of the reasons, the rules of the ids.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use crate::support::Recorder;
use serde::Serialize;
use tower_session_end::{EndReason, GenerationId, InvalidSessionId, Session, SessionEnd, SessionId, SessionStart};

const REASONS: [(EndReason, &str); 11] = [
    (EndReason::New, "new"),
    (EndReason::Reset, "reset"),
    (EndReason::Idle, "idle"),
    (EndReason::Daily, "daily"),
    (EndReason::Compaction, "compaction"),
    (EndReason::Deleted, "deleted"),
    (EndReason::Shutdown, "shutdown"),
    (EndReason::Restart, "restart"),
    (EndReason::Unknown, "unknown"),
    (EndReason::Evicted, "evicted"),
    (EndReason::Lost, "lost"),
];

fn id(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

fn full(id: &str) -> Session {
    Session::try_from(id)
        .unwrap()
        .with_key("agent:main:telegram:42")
        .with_agent_id("main")
        .with_store_path("/var/lib/gateway")
        .with_session_file("/var/lib/gateway/4711.jsonl")
        .with_attribute("tenant", "acme")
        .with_attribute("plan", "gold")
}

/// Names, order and absence of fields are all part of the contract.
macro_rules! assert_golden {
    ($value:expr, $file:literal) => {{
        let golden = include_str!(concat!("../golden/", $file));
        assert_eq!(pretty(&$value), golden, "{}", $file);
    }};
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

#[test]
fn a_start_is_what_plugins_expect() {
    let start = SessionStart::new(full("4711")).with_resumed_from(id("4710"));
    assert_golden!(start, "session_start.json");
    assert_golden!(SessionStart::new(SessionId::new("4711").unwrap()), "session_start_minimal.json");
}

#[test]
fn an_end_is_what_plugins_expect() {
    let end = SessionEnd::new(full("4711"), EndReason::Compaction)
        .with_next(Session::try_from("4712").unwrap().with_key("agent:main:telegram:43"))
        .with_started_at(SystemTime::UNIX_EPOCH)
        .with_duration(Duration::from_micros(90_061_999))
        .with_requests(17)
        .with_transcript_archived(true)
        .with_deadline(Instant::now());
    assert_golden!(end, "session_end.json");
    assert_golden!(SessionEnd::new(SessionId::new("4711").unwrap(), EndReason::Unknown), "session_end_minimal.json");
}

#[test]
fn a_context_is_what_plugins_expect() {
    assert_golden!(full("4711").context(), "context.json");
    assert_golden!(Session::try_from("4711").unwrap().context(), "context_minimal.json");
}

#[test]
fn a_session_survives_json() {
    assert_golden!(full("4711"), "session.json");
    assert_golden!(Session::try_from("4711").unwrap(), "session_minimal.json");
    for session in [full("4711"), Session::try_from("4711").unwrap()] {
        let json = serde_json::to_string(&session).unwrap();
        assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), session);
    }
    // What was recorded under a longer limit is read under it too; what is no id is not.
    let long = Session::new(SessionId::with_max_len("l".repeat(5000), 5000).unwrap());
    let json = serde_json::to_string(&long).unwrap();
    assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), long);
    for bad in [r#"{"sessionId":""}"#, r#"{"sessionId":"two words"}"#, r#"{"sessionId":"é"}"#, "{}"] {
        assert!(serde_json::from_str::<Session>(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_reason_is_one_word_in_every_form() {
    for (reason, word) in REASONS {
        assert_eq!(reason.to_string(), word);
        assert_eq!(reason.as_str(), word);
        assert_eq!(word.parse(), Ok(reason));
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{word}\""));
        assert_eq!(serde_json::from_str::<EndReason>(&format!("\"{word}\"")).unwrap(), reason);
        assert_eq!(format!("{reason:>12}"), format!("{word:>12}"));
        let detaches = matches!(word, "shutdown" | "restart");
        assert_eq!(reason.may_resume(), detaches, "{word}");
    }
    for word in ["", "nonsense", "Reset", "reset ", "shut down"] {
        assert_eq!(word.parse(), Ok(EndReason::Unknown), "{word:?}");
        assert_eq!(serde_json::from_value::<EndReason>(word.into()).unwrap(), EndReason::Unknown);
    }
    assert!(serde_json::from_str::<EndReason>("7").is_err());
}

#[test]
fn g04_an_id_is_visible_ascii_of_a_bounded_length() {
    assert_eq!(SessionId::new(""), Err(InvalidSessionId::Empty));
    for byte in 0..=u8::MAX {
        let result = SessionId::from_bytes(&[b'a', b'b', byte, b'c'], 10);
        assert_eq!(result.is_ok(), (0x21..=0x7e).contains(&byte), "{byte:#x}");
        if let Err(error) = result {
            assert!(matches!(error, InvalidSessionId::NotVisibleAscii { position: 2, .. }), "{error:?}");
        }
    }
    for text in ["a b", " a", "a ", "a\n", "\0", "é", "a\u{7f}", "日本"] {
        assert!(matches!(SessionId::new(text), Err(InvalidSessionId::NotVisibleAscii { .. })), "{text:?}");
        assert!(text.parse::<SessionId>().is_err() && SessionId::try_from(text).is_err());
    }
    for len in [1, 38, 39, 1024] {
        assert_eq!(SessionId::new("i".repeat(len)).unwrap().as_str(), "i".repeat(len));
    }
    let too_long = SessionId::new("i".repeat(1025)).unwrap_err();
    assert!(matches!(too_long, InvalidSessionId::TooLong { len: 1025, max_len: 1024, .. }), "{too_long:?}");
    assert_eq!(too_long.to_string(), "a session id of 1025 bytes is over the limit of 1024");
    assert!(SessionId::with_max_len("i".repeat(1025), 1025).is_ok());
    assert!(SessionId::with_max_len("abc", 2).is_err());
}

#[test]
fn an_id_keeps_its_secret_in_debug_and_in_errors() {
    for secret in ["s", "secret", "0123456789012345678901234567", &"0123456789".repeat(10)] {
        let id = id(secret);
        let debug = format!("{id:?} {:?} {:?}", Session::new(id.clone()), SessionStart::new(id.clone()));
        if secret.len() > 1 {
            assert!(!debug.contains(secret), "{debug}");
        }
        let shown = id.redacted().to_string();
        assert!(shown.chars().count() <= 9 && shown.ends_with('…'), "{shown}");
        assert_eq!(id.to_string(), secret);
    }
    let error = SessionId::new("secret with spaces").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn ids_are_keys_of_maps_that_are_asked_with_text() {
    let mut map = HashMap::new();
    // Inline ones and shared ones.
    let texts = ["a".to_owned(), "b".repeat(38), "b".repeat(39), "c".repeat(1000)];
    for text in &texts {
        map.insert(id(text), text.len());
    }
    for text in &texts {
        assert_eq!(map.get(text.as_str()), Some(&text.len()));
        assert_eq!(map.get(&id(text)), Some(&text.len()));
        assert_eq!(id(text), text.as_str());
        assert_eq!(id(text).cmp(&id("b")), text.as_str().cmp("b"));
    }
    assert_eq!(map.get("x"), None);
    assert_ne!(id("a"), id("b"));
    assert_ne!(id(&"b".repeat(38)), id(&"b".repeat(39)));
}

#[tokio::test(start_paused = true)]
async fn g15_an_event_id_is_that_of_one_generation() {
    let (recorder, sessions) = Recorder::sessions();
    let (other_recorder, other) = Recorder::sessions();
    for reason in [EndReason::Reset, EndReason::Deleted] {
        sessions.note("a");
        sessions.end("a", reason);
    }
    sessions.note("b");
    other.note("a");
    recorder.ended_after_drain(&sessions).await;
    other_recorder.ended_after_drain(&other).await;
    let ids = |recorder: &Recorder| -> (Vec<GenerationId>, Vec<GenerationId>) {
        let (mut starts, mut ends): (Vec<_>, Vec<_>) = (
            recorder.starts().iter().map(|start| start.generation).collect(),
            recorder.ends().iter().map(|end| end.generation).collect(),
        );
        starts.sort();
        ends.sort();
        (starts, ends)
    };
    let (starts, ends) = ids(&recorder);
    assert_eq!(starts, ends, "the same at birth and at the end");
    let (_, others) = ids(&other_recorder);
    let mut all: Vec<_> = ends.into_iter().chain(others).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4, "a generation of its own for each, over handles too");
    let text = all[0].to_string();
    let (instance, generation) = text.split_once('-').unwrap();
    assert!(instance.len() == 32 && instance.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
    assert!(generation.parse::<u64>().is_ok(), "{text}");
    assert_eq!(serde_json::to_string(&all[0]).unwrap(), format!("\"{text}\""));
}

#[test]
fn the_debug_form_of_a_session_shows_no_value_whole() {
    let session = Session::try_from("a-session-id-of-a-cookie")
        .unwrap()
        .with_key("ü".repeat(1000))
        .with_agent_id("main")
        .with_attribute("token", "secret".repeat(1_000_000));
    let shown = format!("{session:?}");
    assert!(shown.len() < 400 && !shown.contains("secret") && !shown.contains("of-a-cookie"), "{shown}");
    assert!(shown.contains(r#"agent_id: "main""#) && shown.contains(r#""token": "6000000 bytes""#), "{shown}");
    assert!(shown.contains("and 1936 bytes more"), "{shown}");
}
