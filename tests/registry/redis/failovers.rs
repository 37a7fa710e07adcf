//! Another server takes the place of the first one, and has all of it or not.

use tower_session_end::registry::{Applied, RedisRegistry, Registry, RegistryError};

use super::{
    outages::forgotten,
    proxy::Way,
    support::{
        RedisServer, SHORT, YOURS, builder, done, end, hold, lazy_manager, one, reach, record, release,
        take_over_so_many, with_lease,
    },
};

/// Two servers, of which the second follows the first, and a way to the first.
async fn pair() -> (RedisServer, RedisServer, Way) {
    let (master, replica) = (RedisServer::start(), RedisServer::start());
    replica.ask(&format!("REPLICAOF 127.0.0.1 {}", master.port()));
    replica.wait_until("INFO replication", "master_link_status:up");
    let way = Way::to(master.port()).await;
    (master, replica, way)
}

/// Waits until the replica has all that the master has.
fn catch_up(master: &RedisServer, replica: &RedisServer) {
    master.ask("SET mark here");
    replica.wait_until("GET mark", "here");
}

#[tokio::test]
async fn g16_a_failover_to_a_replica_that_lagged_behind_is_noticed() {
    let (master, replica, way) = pair().await;
    let (a, b) = (builder(&way.url()).connect().await.unwrap(), builder(&way.url()).connect().await.unwrap());
    let (early, late, shared) = (record("early"), record("late"), record("shared"));
    a.apply(vec![hold(&early), hold(&shared)]).await.unwrap();
    catch_up(&master, &replica);
    // From here on the replica hears nothing.
    replica.ask("REPLICAOF NO ONE");
    assert_eq!(one(&a, hold(&late)).await, Applied::Created);
    assert_eq!(one(&b, hold(&record("shared"))).await, Applied::Joined(shared.clone()));
    way.lead_to(replica.port());

    // To the replica, `late` never was, and `shared` has one holder: neither answer is given.
    forgotten(&reach(&a, &[release(&late, 0), release(&shared, 1)]).await);
    forgotten(&reach(&b, &[release(&shared, 2)]).await);
    assert_eq!(a.apply(vec![hold(&early), hold(&late), hold(&shared)]).await.unwrap(), vec![Applied::Created; 3]);
    assert_eq!(one(&b, hold(&shared)).await, Applied::Created);
    assert_eq!(
        a.apply(vec![release(&late, 0), release(&early, 0), release(&shared, 1)]).await.unwrap(),
        [YOURS, YOURS, Applied::HeldElsewhere],
    );
    assert_eq!(one(&b, release(&shared, 2)).await, Applied::Owned { requests: 3 });
    drop(master);
}

#[tokio::test]
async fn g16_what_another_has_ended_is_not_revived_by_a_failover() {
    let (master, replica, way) = pair().await;
    let (a, b) = (builder(&way.url()).connect().await.unwrap(), builder(&way.url()).connect().await.unwrap());
    let (shared, own) = (record("shared"), record("own"));
    a.apply(vec![hold(&shared), hold(&own)]).await.unwrap();
    assert_eq!(one(&b, end(&shared)).await, YOURS);
    assert_eq!(one(&b, done(&shared)).await, Applied::Ok);
    catch_up(&master, &replica);
    replica.ask("REPLICAOF NO ONE");
    way.lead_to(replica.port());
    forgotten(&reach(&a, &[release(&own, 0)]).await);
    // It is known to have held this generation, and the generation is over: until it lets go.
    assert_eq!(a.apply(vec![hold(&shared), hold(&own)]).await.unwrap(), [Applied::Gone, Applied::Created]);
    assert_eq!(one(&a, hold(&shared)).await, Applied::Gone);
    assert_eq!(one(&a, release(&shared, 0)).await, Applied::Gone);
    assert_eq!(one(&a, hold(&record("shared"))).await, Applied::Created);
}

#[tokio::test]
async fn g16_a_holder_that_was_fenced_learns_it_from_the_next_server_too() {
    let (master, replica, way) = pair().await;
    let slow = RedisRegistry::builder(lazy_manager(&way.url())).lease(SHORT).command_timeout(SHORT * 9 / 10);
    let slow = slow.connect().await.unwrap();
    let held = record("a");
    slow.apply(vec![hold(&held)]).await.unwrap();
    let other = with_lease(&master, SHORT).await;
    assert_eq!(take_over_so_many(&other, 1).await[0].record, held);
    catch_up(&master, &replica);
    replica.ask("REPLICAOF NO ONE");
    way.lead_to(replica.port());
    let answer = reach(&slow, &[release(&held, 0)]).await;
    assert!(matches!(answer, Err(RegistryError::Fenced)), "{answer:?}");
}
