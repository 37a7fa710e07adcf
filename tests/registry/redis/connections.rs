//! What shows at start: servers that are not there, not Redis, not ours to use.

use std::time::Duration;

use redis::{Client, cluster::ClusterClient};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tower_session_end::registry::{Applied, RedisRegistry, Registry, RegistryError};

use super::support::{
    LONG, RedisServer, YOURS, builder, claim_orphans, hold, holder, lazy_manager, one, reach, record, records, release,
};
use crate::support::logging::Warnings;

/// A timeout for a busy machine, where a call may well wait that long for its error.
const ENOUGH: Duration = Duration::from_secs(2);

/// The text of an error that waiting does not help.
fn unusable<T>(answer: Result<T, RegistryError>) -> String {
    match answer {
        Err(RegistryError::Invalid(error)) => error.to_string(),
        Err(error) => panic!("another error: {error:?}"),
        Ok(_) => panic!("it went well"),
    }
}

#[track_caller]
fn says(text: &str, part: &str) {
    assert!(text.contains(part), "{text:?} does not say {part:?}");
}

#[tokio::test]
async fn g17_a_server_that_is_down_at_start_fails_connect_and_degrades_lazy() {
    let mut server = RedisServer::start();
    server.kill();
    let url = server.url();
    let error = builder(&url).connect().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");

    let holder = RedisRegistry::builder(lazy_manager(&url)).lease(LONG).lazy();
    let record = record("a");
    let error = holder.apply(vec![hold(&record)]).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    assert!(!holder.lease_is_valid());
    server.start_again();
    // Nothing was recorded before, so nothing was lost: the first call that gets through is answered.
    assert_eq!(reach(&holder, &[hold(&record)]).await.unwrap(), [Applied::Created]);
    assert!(holder.lease_is_valid());
    assert_eq!(one(&holder, release(&record, 0)).await, YOURS);
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_named_at_start() {
    let server = RedisServer::with(&["--requirepass", "right"]);
    for (user, part) in [("", "wants a password"), (":wrong@", "AuthenticationFailed")] {
        let url = format!("redis://{user}127.0.0.1:{}/", server.port());
        says(&unusable(builder(&url).connect().await), part);
    }
    let holder = holder(&server).await;
    assert_eq!(one(&holder, hold(&record("a"))).await, Applied::Created);
}

#[tokio::test]
async fn a_user_that_may_not_run_scripts_is_named_at_start() {
    let server = RedisServer::start();
    for (rights, part) in
        [("+@all -@scripting ~*", "no permissions"), ("+@all -zadd ~*", "run th"), ("+@all ~other:*", "No permissions")]
    {
        server.ask(&format!("ACL SETUSER bob reset on >secret {rights}"));
        let url = format!("redis://bob:secret@127.0.0.1:{}/", server.port());
        says(&unusable(builder(&url).connect().await).to_lowercase(), &part.to_lowercase());
    }
}

#[tokio::test]
async fn a_user_that_may_not_ask_about_the_server_can_use_it() {
    let server = RedisServer::start();
    server.ask("ACL SETUSER bob reset on >secret +@all -@dangerous ~{tower-session-end}:*");
    let url = format!("redis://bob:secret@127.0.0.1:{}/", server.port());
    let warnings = Warnings::default();
    let listening = warnings.listen();
    let holder = builder(&url).connect().await.unwrap();
    drop(listening);
    assert_eq!(warnings.all(), ["session-registry-unwatched"]);
    let record = record("a");
    assert_eq!(one(&holder, hold(&record)).await, Applied::Created);
    assert_eq!(one(&holder, release(&record, 0)).await, YOURS);
    assert!(holder.claim_orphans(1).await.unwrap().is_empty());
    holder.release_lease().await.unwrap();
}

#[tokio::test]
async fn a_server_that_may_evict_our_keys_is_refused() {
    let server = RedisServer::start();
    for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
        server.ask(&format!("CONFIG SET maxmemory-policy {policy}"));
        // A limit can be set later.
        for limit in ["0", "100mb"] {
            server.ask(&format!("CONFIG SET maxmemory {limit}"));
            says(&unusable(builder(&server.url()).connect().await), policy);
            says(&unusable(builder(&server.url()).lazy().heartbeat().await), policy);
        }
    }
    assert!(server.keys().is_empty());
    server.ask("CONFIG SET maxmemory-policy volatile-lru");
    holder(&server).await.release_lease().await.unwrap();
}

#[tokio::test]
async fn keys_of_something_else_are_left_alone() {
    let server = RedisServer::start();
    server.ask("SET {tower-session-end}:leases mine");
    says(&unusable(builder(&server.url()).connect().await), "WRONGTYPE");
    server.ask("FLUSHALL");
    server.ask("SET {tower-session-end}:inc 1-0");
    says(&unusable(builder(&server.url()).connect().await), "have the layout 1 of another version");
    server.ask("DEL {tower-session-end}:inc");
    for (incarnation, layout) in [("2-0", "2"), ("4-0", "4"), ("x", "?")] {
        server.ask(&format!("SET {{tower-session-end}}:incarnation {incarnation}"));
        let registry = builder(&server.url()).lazy();
        for text in [
            unusable(builder(&server.url()).connect().await),
            unusable(registry.heartbeat().await),
            unusable(registry.claim_orphans(1).await),
            unusable(registry.dead_letters(1).await),
            unusable(registry.redeliver_all().await),
        ] {
            says(
                &text,
                &format!("have the layout {layout} of another version of tower-session-end, and this one uses 3"),
            );
            says(&text, "delete these keys, or set another `prefix`");
        }
        assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
    }
}

#[tokio::test]
async fn a_copy_of_another_deployments_database_is_refused() {
    for (first, second) in [(Some("production"), Some("staging")), (Some("production"), None), (None, Some("staging"))]
    {
        let server = RedisServer::start();
        let registry = |name: Option<&str>| match name {
            Some(name) => builder(&server.url()).deployment(name),
            None => builder(&server.url()),
        };
        let dead = registry(first).connect().await.unwrap();
        let held = record("a");
        one(&dead, hold(&held)).await;
        dead.release_lease().await.unwrap();
        let keys = server.keys();
        let name =
            |name: Option<&str>| name.map_or("no deployment".to_owned(), |name| format!("the deployment \"{name}\""));
        let lazy = registry(second).lazy();
        for text in [
            unusable(registry(second).connect().await),
            unusable(lazy.claim_orphans(10).await),
            unusable(lazy.apply(vec![hold(&held)]).await),
            unusable(lazy.dead_letters(10).await),
            unusable(lazy.redeliver(held.generation).await),
        ] {
            says(&text, &format!("belong to {}, and this process to {}", name(first), name(second)));
        }
        assert_eq!(server.keys(), keys);
        let orphans = claim_orphans(&registry(first).connect().await.unwrap()).await;
        assert_eq!(orphans.len(), 1);
        assert_eq!(orphans[0].record, held);
    }
}

#[tokio::test]
async fn a_server_that_is_no_redis_fails_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
        }
    });
    let error = builder(&url).connect().await.unwrap_err();
    assert!(matches!(error, RegistryError::Invalid(_) | RegistryError::Unavailable(_)), "{error:?}");
    serving.abort();
}

#[tokio::test]
async fn settings_out_of_bounds_are_named() {
    let server = RedisServer::start();
    let url = server.url();
    says(&unusable(builder(&url).prefix("a{b").connect().await), "a{b");
    says(&unusable(builder(&url).prefix("").connect().await), "empty");
    says(&unusable(builder(&url).deployment("").connect().await), "`deployment` is empty");
    says(&unusable(builder(&url).lease(Duration::from_millis(99)).connect().await), "99ms");
    says(&unusable(builder(&url).lease(Duration::MAX).connect().await), "lease");
    says(&unusable(builder(&url).command_timeout(Duration::ZERO).connect().await), "timeout");
    says(&unusable(builder(&url).command_timeout(LONG).connect().await), "timeout");
    // Where nothing is asked at start, the calls say it.
    says(&unusable(builder(&url).prefix("}").lazy().heartbeat().await), "brace");
    assert!(server.keys().is_empty());
}

#[tokio::test]
async fn a_replica_is_not_available() {
    let server = RedisServer::start();
    server.ask(&format!("REPLICAOF 127.0.0.1 {}", server.port()));
    let error = builder(&server.url()).connect().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    says(&error.to_string(), "read only replica");
}

#[tokio::test]
async fn a_deployment_lives_in_one_slot_of_a_cluster() {
    let server = RedisServer::cluster();
    let connection = ClusterClient::new([server.url()]).unwrap().get_async_connection().await.unwrap();
    let holder = RedisRegistry::builder(connection)
        .prefix("a-deployment")
        .lease(LONG)
        .command_timeout(ENOUGH)
        .connect()
        .await
        .unwrap();
    let (held, ended) = (record("{another}slot"), record("{}"));
    assert_eq!(holder.apply(vec![hold(&held), hold(&ended)]).await.unwrap(), [Applied::Created, Applied::Created]);
    assert_eq!(one(&holder, release(&ended, 0)).await, YOURS);
    let keys = server.keys();
    assert_eq!(keys.len(), 8, "{keys:?}");
    let slots: Vec<_> = keys.iter().map(|key| server.ask(&format!("CLUSTER KEYSLOT {key}"))).collect();
    assert!(slots.iter().all(|slot| *slot == slots[0]), "{keys:?} are in {slots:?}");
}

#[tokio::test]
async fn g15_a_slot_that_moves_to_another_node_is_unavailable_and_never_half_read() {
    let (from, to) = (RedisServer::cluster(), RedisServer::cluster_node());
    let connection = ClusterClient::new([from.url()]).unwrap().get_async_connection().await.unwrap();
    let holder = RedisRegistry::builder(connection).lease(LONG).command_timeout(ENOUGH).connect().await.unwrap();
    let records = records(10);
    holder.apply(records.iter().map(hold).collect()).await.unwrap();
    from.ask(&format!("CLUSTER MEET 127.0.0.1 {} {}", to.port(), to.bus_port()));
    from.wait_until("CLUSTER NODES", &to.ask("CLUSTER MYID"));
    to.wait_until("CLUSTER INFO", "cluster_state:ok");
    let slot = from.ask("CLUSTER KEYSLOT {tower-session-end}");
    to.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", from.ask("CLUSTER MYID")));
    from.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", to.ask("CLUSTER MYID")));
    let moving = from.keys();
    let (first, rest) = moving.split_at(moving.len() / 2);
    for keys in [&[][..], first, rest] {
        for key in keys {
            assert_eq!(from.ask(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port())), "OK", "{key}");
        }
        let answer = holder.apply(records.iter().map(|record| release(record, 0)).collect()).await;
        assert!(matches!(answer, Err(RegistryError::Unavailable(_))), "{answer:?}");
    }
    for server in [&to, &from] {
        server.ask(&format!("CLUSTER SETSLOT {slot} NODE {}", to.ask("CLUSTER MYID")));
    }
    // All of it has moved. It is another server, so it is asked again before it is believed.
    let answer = reach(&holder, &[release(&records[0], 0)]).await;
    assert!(matches!(answer, Err(RegistryError::DataLost)), "{answer:?}");
    let held = holder.apply(records.iter().map(hold).collect()).await.unwrap();
    assert!(held.iter().all(|answer| *answer == Applied::Created));
    let ended = holder.apply(records.iter().map(|record| release(record, 0)).collect()).await.unwrap();
    assert!(ended.iter().all(|answer| *answer == YOURS));
}

#[tokio::test]
async fn a_multiplexed_connection_with_the_third_protocol_serves_too() {
    let server = RedisServer::start();
    let client = Client::open(format!("{}?protocol=resp3", server.url())).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let holder = RedisRegistry::builder(connection).lease(LONG).command_timeout(ENOUGH).connect().await.unwrap();
    let held = record("a");
    assert_eq!(one(&holder, hold(&held)).await, Applied::Created);
    assert_eq!(one(&holder, hold(&record("a"))).await, Applied::Joined(held));
    assert_eq!(holder.instance().len(), 32);
    assert!(server.keys().contains(&format!("{{tower-session-end}}:held:{}:0", holder.instance())));
}
