//! What is an id, and of which revision a head is.

use http::HeaderValue;
use tower_session_end::McpProtocol;

use super::{ID, VERSION, ask, mcp, say, with};
use crate::support::{answer, exchange};

#[tokio::test(start_paused = true)]
async fn junk_deletes_make_no_event() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    sessions.note("bystander");
    let long = "x".repeat(64 * 1024);
    let junk: [&[(&str, &str)]; 8] = [
        &[],
        &[(ID, "")],
        &[(ID, "unknown")],
        &[(ID, "two words")],
        &[(ID, &long)],
        &[(ID, "bystander"), (ID, "unknown")],
        &[(ID, "bystander"), (VERSION, "2026-07-28")],
        &[("x-session-id", "bystander")],
    ];
    for headers in junk {
        for status in [200, 202, 204, 404] {
            say(&layer, "DELETE", headers, status, &[]).await;
            say(&layer, "DELETE", headers, status, headers).await;
        }
    }
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["bystander shutdown"]);
    assert_eq!(recorder.started(), ["bystander"]);
}

#[tokio::test(start_paused = true)]
async fn ids_have_no_limit_and_differ_by_one_byte() {
    let (recorder, sessions, layer) = mcp();
    let long = "x".repeat(64 * 1024);
    let other = format!("{}y", &long[1..]);
    say(&layer, "POST", &[], 200, &[(ID, &long)]).await;
    say(&layer, "POST", &[(ID, &long)], 200, &[(ID, &long)]).await;
    say(&layer, "POST", &[], 200, &[(ID, &other)]).await;
    say(&layer, "DELETE", &[(ID, &other)], 202, &[]).await;
    assert!(sessions.contains(&long) && !sessions.contains(&other));
    assert_eq!(sessions.ignored_ids(), 0);
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, [format!("{long} shutdown"), format!("{other} deleted")]);
}

#[tokio::test(start_paused = true)]
async fn g04_what_is_no_id_is_ignored_and_counted() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    let no_ids: [&[u8]; 6] = [b"", b"two words", b"tab\tbed", b"\xff", "ü".as_bytes(), b"caf\xe9-1"];
    for (n, no_id) in no_ids.into_iter().enumerate() {
        let value = HeaderValue::from_bytes(no_id).unwrap();
        let mut response = answer(200, &[]);
        response.headers_mut().insert(ID, value.clone());
        let response = exchange(&layer, ask("POST", &[]), response).await;
        assert_eq!(response.headers()[ID], value, "not the layer's to change");
        assert_eq!(sessions.ignored_ids(), n as u64 + 1);
        // In a request it is none of the host's words: not even counted.
        for method in ["DELETE", "POST", "GET"] {
            let mut request = ask(method, &[]);
            request.headers_mut().insert(ID, value.clone());
            exchange(&layer, request, answer(404, &[])).await;
            let mut request = ask(method, &[]);
            request.headers_mut().insert(ID, value.clone());
            exchange(&layer, request, answer(200, &[])).await;
        }
        assert_eq!(sessions.ignored_ids(), n as u64 + 1);
    }
    assert!(sessions.is_empty());
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn g04_an_id_that_comes_twice_counts_if_both_are_equal() {
    // The second row is longer than what is searched by a look at each name.
    for padding in [0, 12] {
        let names: Vec<_> = (0..padding).map(|n| format!("x-padding-{n}")).collect();
        let pad = |headers: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
            headers.iter().copied().chain(names.iter().map(|name| (name.as_str(), "-"))).collect()
        };
        let (recorder, sessions, layer) = mcp();
        say(&layer, "POST", &pad(&[]), 200, &pad(&[(ID, "a"), (ID, "a")])).await;
        assert!(sessions.contains("a"));
        say(&layer, "POST", &pad(&[]), 200, &pad(&[(ID, "b"), (ID, "c")])).await;
        assert_eq!((sessions.len(), sessions.ignored_ids()), (1, 1));
        // Of two ids, none is meant.
        say(&layer, "DELETE", &pad(&[(ID, "a"), (ID, "b")]), 200, &pad(&[])).await;
        assert!(sessions.contains("a"));
        say(&layer, "DELETE", &pad(&[(ID, "a"), (ID, "a")]), 200, &pad(&[])).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_revision_of_2026_has_no_sessions() {
    for version in ["2026-07-28", "2026-11-25", "2027-01-01", "9999-12-31"] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
        sessions.note("a");
        let modern = |id| [(ID, id), (VERSION, version)];
        for (method, status) in [("POST", 200), ("POST", 404), ("GET", 404), ("DELETE", 200), ("DELETE", 404)] {
            // 404 is the answer to a method that the host does not know, and the id none that it looked at.
            say(&layer, method, &modern("a"), status, &[]).await;
            say(&layer, method, &modern("unknown"), status, &[]).await;
        }
        assert!(sessions.contains("a"), "{version}");
        // The host's own word that it has no session.
        for headers in [&[][..], &[(ID, "b")], &modern("b")] {
            say(&layer, "POST", headers, 200, &modern("b")).await;
        }
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"], "{version}");
        assert_eq!(recorder.started(), ["a"], "{version}");
        assert_eq!(recorder.ends()[0].requests, 0, "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_revisions_before_have_sessions_and_so_has_what_is_no_revision() {
    for version in
        ["2024-11-05", "2025-03-26", "2025-11-25", "2026-07-27", "DRAFT-2027", "2027", "x026-07-28", "\u{e4}"]
    {
        let (recorder, sessions, layer) = mcp();
        say(&layer, "POST", &[(VERSION, version)], 200, &[(ID, "a"), (VERSION, version)]).await;
        assert!(sessions.contains("a"), "{version}");
        say(&layer, "DELETE", &[(ID, "a"), (VERSION, version)], 200, &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"], "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_hide_a_session_behind_a_revision() {
    // rmcp opens a session for every `initialize`, and gives out its id, whatever revision the head claims.
    let (recorder, sessions, layer) = mcp();
    say(&layer, "POST", &[(VERSION, "2026-07-28")], 200, &[(ID, "a")]).await;
    assert!(sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
}
