//! What opens a session, what ends it, and what does none of it.

use tower_session_end::McpProtocol;

use super::{ID, METHODS, STATUSES, VERSION, mcp, say, with};

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
async fn g20_a_delete_ends_its_session_by_a_2xx_alone() {
    for status in STATUSES {
        let (recorder, sessions, layer) = mcp();
        sessions.note("a");
        // A host may echo the id once more.
        for echo in [&[][..], &[(ID, "a")]] {
            say(&layer, "DELETE", &[(ID, "a")], status, echo).await;
        }
        let ends = (200..300).contains(&status);
        assert_eq!(sessions.contains("a"), !ends, "{status}");
        let ended = recorder.ended_after_drain(&sessions).await;
        assert_eq!(ended, [if ends { "a deleted" } else { "a shutdown" }], "{status}");
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g20_any_other_request_casts_doubt_by_a_404_or_a_410_and_ends_nothing() {
    for method in METHODS.into_iter().filter(|method| *method != "DELETE") {
        for status in STATUSES {
            let (recorder, sessions, layer) = mcp();
            let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
            sessions.note("a");
            say(&layer, method, &[(ID, "a")], status, &[]).await;
            assert!(sessions.contains("a"), "{method} {status}");
            tokio::time::sleep(std::time::Duration::from_secs(59)).await;
            assert!(sessions.contains("a"), "{method} {status}");
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            // Probes and preflights are none of the transport.
            let ends = [404, 410].contains(&status) && !["HEAD", "OPTIONS", "TRACE"].contains(&method);
            assert_eq!(sessions.contains("a"), !ends, "{method} {status}");
            driver.abort();
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
