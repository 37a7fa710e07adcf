//! [`McpProtocol`], against its table in words of our own.

use std::collections::BTreeSet;

use http::{HeaderMap, Method, StatusCode};
use tower_session_end::{ActiveSessions, McpProtocol};

use crate::{
    heads::{self, Word, active, exchange, word},
    input::Input,
};

const NAMES: &[&str] = &["mcp-session-id", "mcp-session-id", "mcp-protocol-version", "x-session-end"];
const VALUES: &[&str] = &["a", "b", "c", "", "a b", "2025-06-18", "2026-07-28", "2027-01-01", "nonsense"];

/// An id, where the head is of a revision that has sessions.
fn id(headers: &HeaderMap) -> Option<String> {
    let version = headers.get("mcp-protocol-version").map_or(&b""[..], |version| version.as_bytes());
    let is_date = version.len() == 10 && version.iter().all(|b| b.is_ascii_digit() || *b == b'-');
    let has_sessions = !is_date || version < b"2026-07-28".as_slice();
    match word(headers, "mcp-session-id") {
        Word::One(value) if has_sessions => heads::id(&value, usize::MAX),
        Word::One(_) | Word::None | Word::Many => None,
    }
}

fn after(
    mut active: BTreeSet<String>,
    adopt: bool,
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
) -> BTreeSet<String> {
    let carried = id(request);
    let is_tracked = carried.as_ref().is_some_and(|id| active.contains(id));
    if method == Method::HEAD {
        return active;
    }
    if status.is_success() && method != Method::DELETE {
        let is_silent = matches!(word(response, "mcp-session-id"), Word::None);
        let says_none = {
            let mut with_an_id = response.clone();
            with_an_id.insert("mcp-session-id", http::HeaderValue::from_static("any"));
            id(&with_an_id).is_none()
        };
        active.extend(id(response));
        active.extend(carried.filter(|_| adopt && is_silent && !is_tracked && !says_none));
    } else if let Some(id) = carried.filter(|_| status.is_success() || status == StatusCode::NOT_FOUND) {
        active.remove(&id);
    }
    active
}

/// One exchange. Nothing panics, the response is the host's own, and the sessions are those of the table.
pub fn mcp(data: &[u8]) {
    let mut input = Input(data);
    let adopt = input.flag();
    let known = input.byte();
    let method = heads::method(&mut input);
    let status =
        if input.flag() { heads::status(&mut input) } else { input.one_of(&[StatusCode::OK, StatusCode::NOT_FOUND]) };
    let request = heads::headers(&mut input, NAMES, VALUES);
    let response = heads::headers(&mut input, NAMES, VALUES);

    let sessions = ActiveSessions::builder().build().expect("the defaults");
    for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
        if known >> n & 1 == 1 {
            sessions.note(id);
        }
    }
    let before = active(&sessions);
    let layer = sessions.layer_with(McpProtocol::new().adopt(adopt));
    assert_eq!(exchange(&layer, &method, &request, status, &response), (status, response.clone()));
    let expected = after(before, adopt, &method, &request, status, &response);
    assert_eq!(active(&sessions), expected, "{method} {request:?} {status} {response:?}");
}
