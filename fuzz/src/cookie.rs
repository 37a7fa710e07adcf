//! [`CookieProtocol`]: what has to hold whatever stands in cookies.

use std::collections::BTreeSet;

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};
use tower_session_end::{ActiveSessions, CookieProtocol};

use crate::{
    heads::{self, active, exchange},
    input::Input,
};

const NAMES: &[&str] = &["cookie", "set-cookie", "x-other"];
const VALUES: &[&str] = &[
    "sid=a",
    "sid=b; Path=/; HttpOnly",
    "sid=a; sid=b",
    "sid=; Max-Age=0",
    "sid=a; Max-Age=0",
    "sid=a; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
    "sid=c; Max-Age=3600; Domain=Example.org",
    "sid=\"a\"",
    "SID=a",
    "other=a",
    "sid",
    "=a",
    ";;",
];

/// One exchange: nothing panics, the response is the host's own, ids are ids, and of what a client alone says nothing
/// begins and nothing ends.
pub fn cookie(data: &[u8]) {
    let mut input = Input(data);
    let known = input.byte();
    let (method, status) = (heads::method(&mut input), heads::status(&mut input));
    let request = heads::headers(&mut input, NAMES, VALUES);
    let response = heads::headers(&mut input, NAMES, VALUES);

    let run = |request: &HeaderMap, response: &HeaderMap| {
        let sessions = ActiveSessions::builder().build().expect("the defaults");
        for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
            if known >> n & 1 == 1 {
                sessions.note(id);
            }
        }
        let before = active(&sessions);
        let seen = exchange(&sessions.layer_with(CookieProtocol::new("sid")), &method, request, status, response);
        assert_eq!(seen, (status, response.clone()));
        (before, active(&sessions))
    };
    let (before, after) = run(&request, &response);
    let new: Vec<_> = after.difference(&before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    let stands_in = |headers: &HeaderMap, name, id: &str| {
        let contains = |value: &HeaderValue| value.as_bytes().windows(id.len()).any(|part| part == id.as_bytes());
        headers.get_all(name).iter().any(contains)
    };
    assert!(new.len() <= 1 && gone.len() <= 1, "{before:?} {after:?}");
    for id in new {
        assert!(heads::id(id.as_bytes(), 4096).is_some() && stands_in(&response, SET_COOKIE, id), "{id:?}");
    }
    for id in gone {
        assert!(stands_in(&request, COOKIE, id), "{id:?} ended, and the request does not carry it");
    }

    // A client that sends `set-cookie`, and a host that sends `cookie`, say nothing.
    let (mut asked, mut answered) = (request.clone(), response.clone());
    asked.remove(SET_COOKIE);
    answered.remove(COOKIE);
    assert_eq!(run(&asked, &answered).1, after);
    assert_eq!(run(&request, &HeaderMap::new()).1, before, "a client alone changes nothing");

    // One header or several, as HTTP/2 has it.
    let mut split = asked.clone();
    let pieces: Vec<_> = asked.get_all(COOKIE).iter().flat_map(pieces).collect();
    split.remove(COOKIE);
    for piece in pieces {
        split.append(COOKIE, piece);
    }
    assert_eq!(run(&split, &answered).1, after, "{asked:?} {split:?}");

    let ids: BTreeSet<_> = after.iter().map(String::len).collect();
    assert!(ids.iter().all(|len| (1..=4096).contains(len)));
}

fn pieces(value: &HeaderValue) -> Vec<HeaderValue> {
    let bytes: Vec<_> = value.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii).collect();
    bytes.into_iter().map(|piece| HeaderValue::from_bytes(piece).expect("a part of a value")).collect()
}
