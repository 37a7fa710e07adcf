//! Sessions that rmcp ends by itself: with the layer alone, and with the notifying session manager.

use std::time::Duration;

use mcp_gateway::{Mount, call};
use rmcp::transport::streamable_http_server::session::SessionManager;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower_session_end::EndReason;

use crate::support::{PING, Setup, until, within};

/// Short enough to wait for, long enough for a session to start on a busy machine.
const KEEP_ALIVE: Duration = Duration::from_millis(700);

#[tokio::test]
async fn g20_an_id_that_the_host_has_expired_ends_as_unknown_after_its_404() {
    for mount in Mount::ALL {
        let mut setup = Setup::doubting(mount);
        setup.keep_alive = KEEP_ALIVE;
        let host = setup.plain().await;
        let [posts, gets] = [host.open().await, host.open().await];
        let deletes = host.open().await;
        for id in [&posts, &gets, &deletes] {
            host.lost(id).await;
            // No response shows the end until the client sends a request.
            assert!(host.sessions.contains(id));
        }
        assert_eq!(host.post(&posts, PING).await.status, 404);
        assert_eq!(host.get(&gets).await.status(), 404);
        // rmcp answers any DELETE with success, so the reason is `deleted`.
        assert_eq!(host.delete(&deletes).await.status, 202);
        host.ends(3).await;
        for id in [&posts, &gets, &deletes] {
            assert_eq!(host.post(id, PING).await.status, 404);
            assert_eq!(host.delete(id).await.status, 202);
        }
        let mut expected = [format!("{posts} unknown"), format!("{gets} unknown"), format!("{deletes} deleted")];
        expected.sort();
        assert_eq!(host.stop().await, expected);
    }
}

#[tokio::test]
async fn each_session_of_a_client_that_reconnects_after_expiry_has_its_end() {
    for mount in Mount::ALL {
        let host = Setup::doubting(mount).plain().await;
        let client = host.connect().await;
        let first = host.sessions.snapshot()[0].id.to_string();
        within("a call", call(&client, "remember", json!({ "text": "milk" }))).await.unwrap();
        // Ends the session as rmcp's own expiry does.
        host.manager.close_session(&first.as_str().into()).await.unwrap();
        // After the 404 the client sends another `initialize` and gets an empty session.
        let answer = within("a call", call(&client, "remember", json!({ "text": "bread" }))).await.unwrap();
        assert_eq!(answer, "1 remembered");
        host.ends(1).await;
        assert_eq!(host.sessions.len(), 1);
        let second = host.sessions.snapshot()[0].id.to_string();
        within("the DELETE", client.cancel()).await.unwrap();
        let mut expected = [format!("{first} unknown"), format!("{second} deleted")];
        expected.sort();
        assert_eq!(host.stop().await, expected);
    }
}

#[tokio::test]
async fn an_idle_session_ends_as_idle_through_the_session_manager() {
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        setup.keep_alive = KEEP_ALIVE;
        let host = setup.telling().await;
        let id = host.open().await;
        let client = host.connect().await;
        // The test sends no request. rmcp's client reconnects because its event stream has ended.
        host.ends(2).await;
        assert!(host.sessions.is_empty());
        host.lost(&id).await;
        // The 404 reports the end too, and finds no session.
        assert_eq!(host.post(&id, PING).await.status, 404);
        assert_eq!(host.get(&id).await.status(), 404);
        assert_eq!(host.delete(&id).await.status, 202);
        within("the DELETE", client.cancel()).await.unwrap();
        let ended = host.stop().await;
        assert_eq!(ended.len(), 2, "{ended:?}");
        assert!(ended.contains(&format!("{id} idle")) && ended.iter().all(|end| end.ends_with(" idle")), "{ended:?}");
    }
}

#[tokio::test]
async fn a_delete_that_manager_and_response_report_ends_once() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        let ids = [host.open().await, host.open().await];
        let client = host.connect().await;
        for id in &ids {
            assert_eq!(host.delete(id).await.status, 202);
        }
        within("the DELETE", client.cancel()).await.unwrap();
        // rmcp closes each session a second time when its worker exits.
        until("rmcp has closed its sessions", async || host.manager.local.sessions.read().await.is_empty()).await;
        let ended = host.stop().await;
        assert_eq!(ended.len(), 3);
        assert!(ended.iter().all(|end| end.ends_with(" deleted")), "{ended:?}");
    }
}

#[tokio::test]
async fn a_delete_whose_client_does_not_wait_ends_its_session() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        let id = host.open().await;
        let mut client = TcpStream::connect(host.address).await.unwrap();
        let delete = format!("DELETE /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\nmcp-session-id: {id}\r\n\r\n");
        client.write_all(delete.as_bytes()).await.unwrap();
        drop(client);
        // rmcp may or may not have received the first one.
        let again = host.delete(&id).await;
        assert_eq!(again.status, 202);
        assert_eq!(host.stop().await, [format!("{id} deleted")]);
    }
}

#[tokio::test]
async fn g13_a_session_that_is_idle_for_the_layer_first_ends_once_as_idle() {
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        setup.builder = setup.builder.idle_timeout(KEEP_ALIVE);
        let host = setup.telling().await;
        let id = host.open().await;
        host.ends(1).await;
        assert!(host.manager.has_session(&id.as_str().into()).await.unwrap(), "rmcp must still have the session");
        assert_eq!(host.delete(&id).await.status, 202);
        host.lost(&id).await;
        assert_eq!(host.recorder.reasons(), [(id.clone(), EndReason::Idle)]);
        assert_eq!(host.stop().await, [format!("{id} idle")]);
    }
}
