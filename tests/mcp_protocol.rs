//! The sessions of MCP: what opens, what ends, what is adopted, and what does none of it.

mod support;

use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode};
use support::{Recorder, UnderWay, answer, exchange};
use tower_session_end::{ActiveSessions, EndReason, McpProtocol, SessionLayer};

const ID: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "MCP"];
const STATUSES: [u16; 20] =
    [100, 101, 200, 201, 202, 204, 206, 301, 304, 400, 401, 403, 404, 405, 406, 409, 410, 429, 500, 503];

/// A request with a method and these headers.
fn ask(method: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = support::ask(headers);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    request
}

/// One exchange.
async fn say(layer: &SessionLayer, method: &str, request: &[(&str, &str)], status: u16, response: &[(&str, &str)]) {
    let response = exchange(layer, ask(method, request), answer(status, response)).await;
    assert_eq!(response.status().as_u16(), status);
}

fn mcp() -> (Recorder, ActiveSessions, SessionLayer) {
    with(McpProtocol::new())
}

fn with(protocol: McpProtocol) -> (Recorder, ActiveSessions, SessionLayer) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(protocol);
    (recorder, sessions, layer)
}

#[tokio::test(start_paused = true)]
async fn a_2xx_with_an_id_opens_a_session_and_nothing_else_does() {
    for status in STATUSES {
        let (recorder, sessions, layer) = mcp();
        say(&layer, "POST", &[], status, &[(ID, "a")]).await;
        let opens = (200..300).contains(&status);
        assert_eq!(sessions.contains("a"), opens, "{status}");
        assert_eq!(recorder.ended_after_drain(&sessions).await.len(), usize::from(opens), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_a_head_an_options_and_a_trace_never_open_a_session() {
    for method in METHODS {
        for adopt in [false, true] {
            for headers in [&[][..], &[(ID, "a")], &[(ID, "b")]] {
                let (_, sessions, layer) = with(McpProtocol::new().adopt(adopt));
                say(&layer, method, headers, 200, &[(ID, "a")]).await;
                let opens = !["DELETE", "HEAD", "OPTIONS", "TRACE"].contains(&method);
                assert_eq!(sessions.contains("a"), opens, "{method}");
                assert_eq!(sessions.len(), usize::from(opens), "{method}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_ends_its_session_by_a_2xx_and_a_404() {
    for status in STATUSES {
        let (recorder, sessions, layer) = mcp();
        sessions.note("a");
        // A host may echo the id once more.
        for echo in [&[][..], &[(ID, "a")]] {
            say(&layer, "DELETE", &[(ID, "a")], status, echo).await;
        }
        let ends = (200..300).contains(&status) || status == 404;
        assert_eq!(sessions.contains("a"), !ends, "{status}");
        let ended = recorder.ended_after_drain(&sessions).await;
        assert_eq!(ended, [if ends { "a deleted" } else { "a shutdown" }], "{status}");
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn any_other_request_ends_its_session_by_a_404_alone() {
    for method in METHODS.into_iter().filter(|method| *method != "DELETE") {
        for status in STATUSES {
            let (recorder, sessions, layer) = mcp();
            sessions.note("a");
            say(&layer, method, &[(ID, "a")], status, &[]).await;
            // Probes and preflights are none of the transport.
            let ends = status == 404 && !["HEAD", "OPTIONS", "TRACE"].contains(&method);
            assert_eq!(sessions.contains("a"), !ends, "{method} {status}");
            let ended = recorder.ended_after_drain(&sessions).await;
            assert_eq!(ended, [if ends { "a unknown" } else { "a shutdown" }], "{method} {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_never_makes_an_event() {
    for adopt in [false, true] {
        for method in METHODS {
            for status in STATUSES {
                if adopt && ["GET", "POST", "PUT", "PATCH", "MCP"].contains(&method) && (200..300).contains(&status) {
                    continue;
                }
                let (recorder, sessions, layer) = with(McpProtocol::new().adopt(adopt));
                sessions.note("bystander");
                say(&layer, method, &[(ID, "unknown")], status, &[]).await;
                assert_eq!(recorder.ended_after_drain(&sessions).await, ["bystander shutdown"], "{method} {status}");
                assert_eq!(recorder.started(), ["bystander"], "{method} {status}");
            }
        }
    }
}

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
async fn a_session_from_its_initialize_to_its_delete() {
    let (recorder, sessions, layer) = mcp();
    say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
    say(&layer, "POST", &[(ID, "a"), (VERSION, "2025-11-25")], 202, &[]).await;
    say(&layer, "GET", &[(ID, "a"), (VERSION, "2025-11-25")], 200, &[]).await;
    // Some hosts echo the id in every response, some in none, and a proxy may have asked for it to be left out.
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "a")]).await;
    say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
    say(&layer, "DELETE", &[(ID, "a")], 200, &[]).await;
    assert!(sessions.is_empty());
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
    assert_eq!(recorder.started(), ["a"]);
    assert_eq!(recorder.ends()[0].requests, 4);
}

#[tokio::test(start_paused = true)]
async fn a_second_initialize_with_an_id_leaves_the_first_session_alone() {
    let (recorder, sessions, layer) = mcp();
    say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
    // The host says no, or answers in the same session, or opens another one.
    say(&layer, "POST", &[(ID, "a")], 400, &[]).await;
    say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "b")]).await;
    assert!(sessions.contains("a") && sessions.contains("b"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown", "b shutdown"]);
    assert!(recorder.starts().iter().all(|start| start.resumed_from.is_none()));
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

#[tokio::test(start_paused = true)]
async fn an_id_that_the_host_confirms_is_a_birth_with_or_without_adoption() {
    for adopt in [false, true] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(adopt));
        say(&layer, "POST", &[(ID, "resumed")], 200, &[(ID, "resumed")]).await;
        assert!(sessions.contains("resumed"));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["resumed shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_is_off_by_default() {
    for protocol in [McpProtocol::new(), McpProtocol::default(), McpProtocol::new().adopt(true).adopt(false)] {
        let (_, sessions, layer) = with(protocol);
        say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
        assert!(sessions.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_notes_the_id_of_a_request_that_succeeded() {
    for (method, status) in [("POST", 200), ("POST", 202), ("GET", 200)] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
        say(&layer, method, &[(ID, "a")], status, &[]).await;
        assert!(sessions.contains("a"));
        say(&layer, method, &[(ID, "a")], status, &[]).await;
        say(&layer, "DELETE", &[(ID, "a")], 200, &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_notes_no_id_of_a_request_that_failed_and_none_beside_another() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    for status in STATUSES.into_iter().filter(|status| !(200..300).contains(status)) {
        say(&layer, "POST", &[(ID, "a")], status, &[]).await;
    }
    say(&layer, "POST", &[], 200, &[]).await;
    say(&layer, "POST", &[(ID, "a"), (ID, "b")], 200, &[]).await;
    assert!(sessions.is_empty());
    // The host's word counts, and what it says of no session: neither is the client's.
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "new")]).await;
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "ambiguous"), (ID, "ambiguous-too")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_of_before_a_restart_is_adopted_and_ends_again_as_another_event() {
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
        say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
        ends.extend(recorder.ends());
    }
    assert_ne!(ends[0].event_id, ends[1].event_id);
}

#[tokio::test(start_paused = true)]
async fn g13_a_session_that_was_idle_for_us_alone_is_adopted_when_it_is_used_again() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(Duration::from_secs(60)).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
    let layer = sessions.layer_with(McpProtocol::new().adopt(true));
    say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(sessions.is_empty());
    say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
    assert!(sessions.contains("a"));
    driver.abort();
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_response_of_one_generation_does_not_end_the_next() {
    for (method, status) in [("DELETE", 200), ("DELETE", 404), ("POST", 404), ("GET", 404)] {
        let (recorder, sessions, layer) = mcp();
        sessions.note("a");
        let late = UnderWay::begin(&layer, ask(method, &[(ID, "a")]));
        sessions.end("a", EndReason::Reset);
        sessions.note("a");
        late.answer(answer(status, &[]));
        assert!(sessions.contains("a"), "{method} {status}");
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"], "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn g01_an_id_that_was_unknown_when_its_request_came_is_not_ended_by_the_response() {
    for (method, status) in [("DELETE", 200), ("DELETE", 404), ("POST", 404)] {
        let (recorder, sessions, layer) = mcp();
        let late = UnderWay::begin(&layer, ask(method, &[(ID, "a")]));
        sessions.note("a");
        late.answer(answer(status, &[]));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"], "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn g01_a_delete_and_a_404_at_once_are_one_end() {
    let (recorder, sessions, layer) = mcp();
    sessions.note("a");
    let [first, second, third] =
        ["DELETE", "POST", "DELETE"].map(|method| UnderWay::begin(&layer, ask(method, &[(ID, "a")])));
    second.answer(answer(404, &[]));
    first.answer(answer(200, &[]));
    third.answer(answer(404, &[]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a unknown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_an_echo_of_an_id_that_has_ended_does_not_revive_it() {
    for adopt in [false, true] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(adopt));
        say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
        let late = [(200, &[(ID, "a")][..]), (200, &[]), (202, &[])]
            .map(|(status, headers)| (UnderWay::begin(&layer, ask("POST", &[(ID, "a")])), answer(status, headers)));
        say(&layer, "DELETE", &[(ID, "a")], 202, &[]).await;
        for (late, answer) in late {
            late.answer(answer);
        }
        // Requests that came after the end, to a host that has not noticed.
        for headers in [&[(ID, "a")][..], &[]] {
            say(&layer, "POST", &[(ID, "a")], 200, headers).await;
            say(&layer, "GET", &[(ID, "a")], 200, headers).await;
        }
        assert!(sessions.is_empty());
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g08_in_closing_a_new_session_ends_at_once_and_none_is_adopted() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    let _ = sessions.drain(EndReason::Restart).await;
    say(&layer, "POST", &[(ID, "brought")], 200, &[]).await;
    say(&layer, "POST", &[(ID, "brought")], 200, &[(ID, "brought")]).await;
    say(&layer, "POST", &[], 200, &[(ID, "new")]).await;
    assert!(sessions.is_empty());
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new restart"]);
}

#[tokio::test(start_paused = true)]
async fn g08_refusing_new_sessions_refuses_a_post_without_one_and_nothing_else() {
    let recorder = Recorder::default();
    // So that a session with work is still active in `Closing`.
    let builder = recorder.builder().refuse_new_sessions(true).settle_timeout(Duration::from_secs(1));
    let sessions = builder.build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    sessions.note("busy");
    let busy = UnderWay::begin(&layer, ask("POST", &[(ID, "busy")]));
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    sessions.closing().await;
    let status = async |method, headers: &[(&str, &str)]| {
        exchange(&layer, ask(method, headers), answer(200, &[])).await.status()
    };
    assert_eq!(status("POST", &[]).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("POST", &[(ID, "unknown")]).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("POST", &[(ID, "busy")]).await, StatusCode::OK);
    // Opens nothing, so that the client may have its answer.
    assert_eq!(status("POST", &[(VERSION, "2026-07-28")]).await, StatusCode::OK);
    for method in ["GET", "DELETE", "HEAD", "OPTIONS"] {
        assert_eq!(status(method, &[]).await, StatusCode::OK, "{method}");
        assert_eq!(status(method, &[(ID, "unknown")]).await, StatusCode::OK, "{method}");
    }
    busy.answer(answer(200, &[]));
    let report = drain.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["busy shutdown"]);
}
