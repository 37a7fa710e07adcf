//! Concurrent ends of one session: exactly one end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mcp_gateway::Mount;
use reqwest::Method;
use rmcp::transport::streamable_http_server::session::SessionManager;
use tokio::{task::JoinSet, time::sleep};
use tower_session_end::EndReason;

use crate::support::{PING, Setup};

const SESSIONS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g01_a_delete_an_end_by_the_host_a_404_and_the_drain_at_once_are_one_end() {
    for mount in Mount::ALL {
        let mut host = Setup::new(mount).telling().await;
        let mut ids = Vec::new();
        for _ in 0..SESSIONS {
            ids.push(host.open().await);
        }
        host.signal();
        let host = Arc::new(host);
        let mut ends = JoinSet::new();
        for id in &ids {
            let (by_host, by_client, by_handle, seen) = (host.clone(), host.clone(), host.clone(), host.clone());
            let [one, two, three, four] = [(); 4].map(|()| id.clone());
            ends.spawn(async move { by_host.manager.close_session(&one.into()).await.unwrap() });
            // Requests after the listener is closed are refused.
            ends.spawn(async move { by_client.try_send(Method::DELETE, &two, "").await });
            ends.spawn(async move { seen.try_send(Method::POST, &three, PING).await });
            ends.spawn(async move {
                let _ = by_handle.sessions.end(&four, EndReason::Reset);
            });
        }
        while let Some(done) = ends.join_next().await {
            done.unwrap();
        }
        // `stopped` compares starts and ends by generation.
        let (recorder, _) = Arc::into_inner(host).unwrap().stopped().await;
        assert_eq!(recorder.ends().len(), SESSIONS);
        assert_eq!(recorder.started().into_iter().collect::<BTreeSet<_>>(), ids.into_iter().collect());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g01_idle_expiry_by_rmcp_and_by_the_layer_and_the_drain_at_once_are_one_end() {
    // The timing lets each of the three come first for some of the sessions.
    const IDLE: Duration = Duration::from_secs(1);
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        setup.keep_alive = IDLE;
        setup.builder = setup.builder.idle_timeout(IDLE);
        let mut host = setup.telling().await;
        let mut ids = BTreeSet::new();
        for _ in 0..SESSIONS {
            ids.insert(host.open().await);
            sleep(IDLE / SESSIONS as u32).await;
        }
        host.ends(SESSIONS / 4).await;
        host.signal();
        let (recorder, _) = host.stopped().await;
        assert_eq!(recorder.ends().len(), SESSIONS);
        assert_eq!(recorder.started().into_iter().collect::<BTreeSet<_>>(), ids);
        let reasons: BTreeSet<_> = recorder.ends().iter().map(|end| end.reason).collect();
        assert!(reasons.is_subset(&[EndReason::Idle, EndReason::Shutdown].into()), "{reasons:?}");
    }
}
