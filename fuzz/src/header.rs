//! [`HeaderProtocol`], against its table in words of our own.

use std::collections::BTreeSet;

use http::{HeaderMap, Method, StatusCode};
use tower_session_end::{ActiveSessions, HeaderProtocol};

use crate::{
    heads::{self, Word, active, exchange, word},
    input::Input,
};

const NAMES: &[&str] = &["x-session-id", "x-session-end", "x-session-compacted-from", "x-other"];
const VALUES: &[&str] = &["a", "b", "c", "", "a b", "reset", "12345678", "123456789"];

/// What ought to be active after the exchange.
struct Rules {
    max_len: usize,
    adopt: bool,
}

impl Rules {
    fn id(&self, word: &Word) -> Option<String> {
        match word {
            Word::One(value) => heads::id(value, self.max_len),
            Word::None | Word::Many => None,
        }
    }

    fn after(
        &self,
        mut active: BTreeSet<String>,
        method: &Method,
        request: &HeaderMap,
        status: StatusCode,
        response: &HeaderMap,
    ) -> BTreeSet<String> {
        let [id, end, from] = ["x-session-id", "x-session-end", "x-session-compacted-from"].map(|n| word(response, n));
        let carried = self.id(&word(request, "x-session-id"));
        let is_tracked = carried.as_ref().is_some_and(|id| active.contains(id));
        let may_start = status == 101 || (200..400).contains(&status.as_u16());
        if let (Word::None, Word::None, Word::None) = (&id, &end, &from) {
            let adopted = carried.filter(|_| self.adopt && may_start && !is_tracked && method != Method::DELETE);
            active.extend(adopted);
            return active;
        }
        let opened = self.id(&id);
        if let Word::One(_) = end
            && let Some(ended) = carried.as_ref().or(opened.as_ref())
        {
            active.remove(ended);
            if opened.as_ref() == Some(ended) {
                return active;
            }
        }
        if let Some(new) = opened.filter(|_| may_start) {
            if let Some(old) = self.id(&from).filter(|old| *old != new) {
                active.remove(&old);
            }
            active.insert(new);
        }
        active
    }
}

/// One exchange. Nothing panics, the response is the host's own, and the sessions are those of the table, whatever the
/// client says beside its id.
pub fn header(data: &[u8]) {
    let mut input = Input(data);
    let rules = Rules { max_len: input.one_of(&[1024, 8]), adopt: input.flag() };
    let strip = input.flag();
    let known = input.byte();
    let (method, status) = (heads::method(&mut input), heads::status(&mut input));
    let request = heads::headers(&mut input, NAMES, VALUES);
    let response = heads::headers(&mut input, NAMES, VALUES);

    let run = |request: &HeaderMap| {
        let sessions = ActiveSessions::builder().build().expect("the defaults");
        for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
            if known >> n & 1 == 1 {
                sessions.note(id);
            }
        }
        let before = active(&sessions);
        let protocol = HeaderProtocol::new().max_id_len(rules.max_len).adopt(rules.adopt).strip_control_headers(strip);
        let seen = exchange(&sessions.layer_with(protocol), &method, request, status, &response);
        (before, seen, active(&sessions))
    };
    let (before, (seen_status, seen), after) = run(&request);
    assert_eq!(after, rules.after(before, &method, &request, status, &response), "{request:?} {status} {response:?}");

    let mut expected = response.clone();
    if strip {
        expected.remove("x-session-end");
        expected.remove("x-session-compacted-from");
    }
    assert_eq!((seen_status, seen), (status, expected));

    let mut honest = request.clone();
    honest.remove("x-session-end");
    honest.remove("x-session-compacted-from");
    assert_eq!(run(&honest).2, after, "a client's control headers count for nothing");
}
