//! What stands in a cookie: many of them at once, every kind of value, and junk.

use crate::support::{Recorder, answer, ask, exchange, say};
use http::{HeaderValue, Request};
use tower_session_end::{ActiveSessions, CookieProtocol, SessionLayer};

const COOKIE: &str = "cookie";
const SET: &str = "set-cookie";

fn sessions() -> (Recorder, ActiveSessions, SessionLayer) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(CookieProtocol::new("sid"));
    (recorder, sessions, layer)
}

/// The ids that are active, sorted.
fn active(sessions: &ActiveSessions) -> Vec<String> {
    let mut ids: Vec<_> = sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
    ids.sort();
    ids
}

#[tokio::test(start_paused = true)]
async fn many_cookies_in_one_response_do_not_hide_it_and_are_not_it() {
    let (recorder, sessions, layer) = sessions();
    let others =
        [(SET, "theme=dark"), (SET, "csrf=sid=x; Path=/"), (SET, "SID=upper"), (SET, "sid2=b"), (SET, "xsid=c")];
    say(&layer, &[], &others).await;
    assert!(sessions.is_empty());
    let headers: Vec<_> = others.into_iter().chain([(SET, "sid=a; Path=/")]).chain(others).collect();
    let response = exchange(&layer, ask(&[]), answer(200, &headers)).await;
    assert_eq!(active(&sessions), ["a"]);
    // The client gets all of them, in their order.
    let sent: Vec<_> = response.headers().get_all(SET).iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(sent, headers.iter().map(|(_, value)| *value).collect::<Vec<_>>());
    // Nor does the removal of another cookie end anything.
    let removals = [(SET, "theme=; Max-Age=0"), (SET, "SID=; Max-Age=0"), (SET, "sid2=; Max-Age=0")];
    say(&layer, &[(COOKIE, "theme=dark; sid=a; sid2=b")], &removals).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn of_several_values_in_one_response_the_last_one_counts() {
    // (request, set-cookies, active afterwards); `old` is active before.
    type Case = (&'static str, &'static [&'static str], &'static [&'static str]);
    let cases: [Case; 11] = [
        ("", &["sid=a", "sid=b"], &["b", "old"]),
        ("sid=old", &["sid=a; Path=/", "sid=b; Path=/"], &["b"]),
        ("", &["sid=a; Path=/", "sid=b; Path=/app"], &["b", "old"]),
        // Removed and set, at one place: it is set.
        ("sid=old", &["sid=; Max-Age=0; Path=/", "sid=new; Path=/"], &["new"]),
        ("sid=old", &["sid=; Max-Age=0; Path=/", "sid=old; Path=/"], &["old"]),
        // Set and removed: it is removed, and the new one was never there.
        ("sid=old", &["sid=new; Path=/", "sid=; Max-Age=0; Path=/"], &[]),
        ("sid=old", &["sid=old; Path=/", "sid=; Max-Age=0; Path=/"], &[]),
        ("", &["sid=new; Path=/", "sid=; Max-Age=0; Path=/"], &["old"]),
        // At another place, a removal only clears up, before or after.
        ("sid=old", &["sid=new; Path=/", "sid=; Max-Age=0; Path=/app"], &["new"]),
        ("sid=old", &["sid=old; Domain=a.example", "sid=; Max-Age=0; Domain=.example"], &["old"]),
        // The same place, in other letters.
        ("sid=old", &["sid=new; Domain=A.example", "sid=; Max-Age=0; Domain=.a.Example"], &[]),
    ];
    for (cookie, sets, expected) in cases {
        let (recorder, sessions, layer) = sessions();
        sessions.note("old");
        let headers: Vec<_> = sets.iter().map(|set| (SET, *set)).collect();
        say(&layer, &[(COOKIE, cookie)], &headers).await;
        assert_eq!(active(&sessions), expected, "{sets:?}");
        recorder.ended_after_drain(&sessions).await;
        recorder.assert_no_generation_ended_twice();
        assert_eq!(recorder.ends().len(), recorder.starts().len(), "{sets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_may_carry_its_cookies_in_one_header_or_in_several() {
    let requests: [&[(&str, &str)]; 6] = [
        &[(COOKIE, "sid=a")],
        &[(COOKIE, "theme=dark; sid=a; lang=en")],
        &[(COOKIE, "theme=dark;sid=a;")],
        &[(COOKIE, " ; ;;sid = a ; ")],
        // As HTTP/2 splits them.
        &[(COOKIE, "theme=dark"), (COOKIE, "sid=a"), (COOKIE, "lang=en")],
        // A neighbour that does not parse.
        &[(COOKIE, "junk; =; sid=a; =x")],
    ];
    for request in requests {
        let (recorder, sessions, layer) = sessions();
        sessions.note("a");
        say(&layer, request, &[(SET, "sid=; Max-Age=0")]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"], "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_comes_twice_counts_once() {
    let removed = [(SET, "sid=; Max-Age=0")];
    let (recorder, sessions, layer) = sessions();
    for id in ["a", "b"] {
        sessions.note(id);
    }
    say(&layer, &[(COOKIE, "sid=a; sid=a"), (COOKIE, "sid=\"a\"")], &removed).await;
    assert_eq!(active(&sessions), ["b"]);
    // A value that is not an id is not another id.
    say(&layer, &[(COOKIE, "sid=; sid=b; sid=two words")], &removed).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "b deleted"]);
}

#[tokio::test(start_paused = true)]
async fn of_several_values_the_first_whose_session_is_active_counts() {
    let removed = [(SET, "sid=; Max-Age=0; Path=/app")];
    let (recorder, sessions, layer) = sessions();
    for id in ["live", "other"] {
        sessions.note(id);
    }
    say(&layer, &[(COOKIE, "sid=stale; sid=live")], &[]).await;
    assert_eq!(sessions.get("live").map(|session| session.id.to_string()).as_deref(), Some("live"));
    say(&layer, &[(COOKIE, "sid=stale; sid=live"), (COOKIE, "sid=other")], &removed).await;
    assert_eq!(active(&sessions), ["other"]);
    let ends = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ends, ["live deleted", "other shutdown"]);
    let live = recorder.ends().into_iter().find(|end| end.session.id == "live").unwrap();
    assert_eq!(live.requests, 2, "both requests were its activity");
}

#[tokio::test(start_paused = true)]
async fn several_values_of_which_none_is_active_are_ambiguous() {
    let protocol = CookieProtocol::new("sid").adopt(true);
    let (recorder, sessions) = Recorder::sessions();
    say(&sessions.layer_with(protocol), &[(COOKIE, "sid=b; sid=c")], &[]).await;
    assert!(sessions.is_empty());
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_id_is_what_the_cookie_holds() {
    let values =
        ["a%3D%2Bb", "MTIz+/=", "MTIz+/==abc=", "s%3Aid.sig%2F", "==", "%", "%zz", "a+b&c=d", "{x:1}", "'a'", "\""];
    for value in values {
        let (recorder, sessions, layer) = sessions();
        say(&layer, &[], &[(SET, &format!("sid={value}; Path=/"))]).await;
        assert_eq!(active(&sessions), [value]);
        say(&layer, &[(COOKIE, &format!("x=1; sid={value}"))], &[(SET, "sid=; Max-Age=0")]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("{value} deleted")]);
    }
}

#[tokio::test(start_paused = true)]
async fn quotes_around_a_value_are_not_part_of_it() {
    let (recorder, sessions, layer) = sessions();
    say(&layer, &[], &[(SET, "sid=\"a\"; Path=/")]).await;
    assert_eq!(active(&sessions), ["a"]);
    say(&layer, &[(COOKIE, "sid=\"a\"")], &[(SET, "sid=a; Path=/")]).await;
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=\"a\"; Path=/")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn g04_a_value_that_is_no_id_is_ignored_and_counted() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    say(&layer, &[], &[(SET, "sid=two words; Path=/")]).await;
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=two words; Path=/")]).await;
    assert_eq!(sessions.ignored_ids(), 2);
    // Such a request has no session.
    say(&layer, &[(COOKIE, "sid=two words")], &[(SET, "sid=b")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown", "b shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_cookie_that_does_not_parse_is_ignored() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    for junk in ["", ";", "sid", "=a", " = ; Max-Age=0", "sid; Max-Age=0", ";sid=b", "; Max-Age=0", "Max-Age=0"] {
        say(&layer, &[(COOKIE, "sid=a")], &[(SET, junk)]).await;
        say(&layer, &[(COOKIE, junk)], &[(SET, "sid=; Max-Age=0")]).await;
    }
    assert_eq!(sessions.ignored_ids(), 0);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

/// Every byte that can be in a header, in some places of a cookie.
fn junk() -> impl Iterator<Item = HeaderValue> {
    let places: [fn(u8) -> Vec<u8>; 7] = [
        |byte| vec![b's', b'i', b'd', b'=', byte],
        |byte| vec![b's', b'i', b'd', b'=', b'a', byte, b'z'],
        |byte| vec![byte, b's', b'i', b'd', b'=', b'a'],
        |byte| vec![b's', b'i', b'd', byte, b'=', b'a'],
        |byte| [b"sid=a; Path=".as_slice(), &[byte]].concat(),
        |byte| [b"sid=a; Max-Age=".as_slice(), &[byte]].concat(),
        |byte| [b"sid=a; ".as_slice(), &[byte, b'='], b"; Expires=".as_slice(), &[byte, byte]].concat(),
    ];
    (0..=u8::MAX).flat_map(move |byte| places.map(|place| HeaderValue::from_bytes(&place(byte)))).flatten()
}

#[tokio::test(start_paused = true)]
async fn g04_no_byte_in_a_cookie_panics() {
    let (recorder, sessions, layer) = sessions();
    for value in junk() {
        let mut request = ask(&[]);
        request.headers_mut().insert(COOKIE, value.clone());
        let mut response = answer(200, &[]);
        response.headers_mut().insert(SET, value.clone());
        let response = exchange(&layer, request, response).await;
        assert_eq!(response.headers()[SET], value, "not the layer's to change");
    }
    recorder.ended_after_drain(&sessions).await;
    // Visible ASCII but `;` in the middle of a value, and next to nothing else.
    for id in (0x21..=0x7e).filter(|byte| *byte != b';').map(|byte| format!("a{}z", char::from(byte))) {
        assert_eq!(recorder.order(&id), "+-", "{id}");
    }
    assert!(sessions.ignored_ids() > 128);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn bytes_beyond_text_in_one_cookie_do_not_hide_the_next() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    let mut request: Request<()> = ask(&[]);
    request.headers_mut().insert(COOKIE, HeaderValue::from_bytes(b"name=J\xf6rg; \xff; sid=a; x=\xfe").unwrap());
    exchange(&layer, request, answer(200, &[(SET, "sid=; Max-Age=0")])).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn ids_are_as_long_as_the_limit_and_no_longer() {
    for (protocol, limit) in [
        (CookieProtocol::new("sid"), 4096),
        (CookieProtocol::new("sid").max_id_len(65_536), 65_536),
        (CookieProtocol::new("sid").max_id_len(8), 8),
    ] {
        let (recorder, sessions) = Recorder::sessions();
        let layer = sessions.layer_with(protocol);
        let fits = "i".repeat(limit);
        say(&layer, &[], &[(SET, &format!("sid={fits}; Path=/"))]).await;
        say(&layer, &[], &[(SET, &format!("sid={fits}i; Path=/"))]).await;
        assert_eq!((sessions.len(), sessions.ignored_ids()), (1, 1), "{limit}");
        say(&layer, &[(COOKIE, &format!("sid={fits}"))], &[(SET, "sid=; Max-Age=0")]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("{fits} deleted")], "{limit}");
    }
}

#[test]
fn a_cookie_is_never_whole_in_a_log() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let protocol = CookieProtocol::new("sid").id_from_value(|value| Some(value.to_owned()));
    assert_eq!(format!("{protocol:?}"), r#"CookieProtocol { name: "sid", max_id_len: 4096, adopt: false, .. }"#);
    let secret = "a-cookie-that-logs-you-in";
    sessions.note(secret);
    let logged = format!("{:?} {:?}", sessions, sessions.snapshot());
    assert!(logged.contains("a-cookie…") && !logged.contains(secret), "{logged}");
}
