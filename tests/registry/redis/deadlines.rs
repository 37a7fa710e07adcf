//! Calls that were given up: the server refuses them when it gets to them.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    Client, Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
};
use tokio::time::{sleep, timeout};
use tower_session_end::registry::{Applied, RedisRegistry, Registry, RegistryError};

use super::{
    proxy::Way,
    support::{LONG, PATIENCE, RedisServer, hold, lazy_manager, one, record},
};

const MS: Duration = Duration::from_millis(1);

/// A server that does nothing at all, until this is dropped.
struct Stopped(String);

impl Stopped {
    fn new(server: &RedisServer) -> Self {
        let info = server.ask("INFO server");
        let id = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().to_owned();
        signal("-STOP", &id);
        Self(id)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

fn signal(name: &str, id: &str) {
    assert!(Command::new("kill").args([name, id]).status().unwrap().success());
}

#[track_caller]
fn unavailable<T: std::fmt::Debug>(answer: &Result<T, RegistryError>) {
    assert!(matches!(answer, Err(RegistryError::Unavailable(_))), "{answer:?}");
}

/// Waits until the server has got to so many scripts.
async fn until_scripts(server: &RedisServer, count: u64) {
    let start = Instant::now();
    while server.calls("evalsha") + server.calls("eval") < count {
        assert!(start.elapsed() < PATIENCE, "the calls never arrive");
        sleep(5 * MS).await;
    }
}

fn scripts(server: &RedisServer) -> u64 {
    server.calls("evalsha") + server.calls("eval")
}

/// As in a drain: three attempts, none of which the server gets to in time.
async fn a_server_that_wakes_refuses_what_timed_out<C>(server: &RedisServer, connection: C)
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    let holder = RedisRegistry::builder(connection).lease(LONG).connect().await.unwrap();
    assert_eq!(one(&holder, hold(&record("before"))).await, Applied::Created);
    let (keys, before, late) = (server.keys(), scripts(server), record("late"));
    let stopped = Stopped::new(server);
    for _ in 0..3 {
        unavailable(&holder.apply(vec![hold(&late)]).await);
    }
    drop(stopped);
    until_scripts(server, before + 3).await;
    assert_eq!(server.keys(), keys);
    // It is no worse off.
    assert_eq!(one(&holder, hold(&late)).await, Applied::Created);
}

#[tokio::test]
async fn g15_a_call_that_timed_out_is_not_carried_out_when_the_server_wakes() {
    let server = RedisServer::start();
    a_server_that_wakes_refuses_what_timed_out(&server, lazy_manager(&server.url())).await;
}

#[tokio::test]
async fn g15_a_call_that_timed_out_is_not_carried_out_when_a_cluster_wakes() {
    let server = RedisServer::cluster();
    let connection = ClusterClient::new([server.url()]).unwrap().get_async_connection().await.unwrap();
    a_server_that_wakes_refuses_what_timed_out(&server, connection).await;
}

#[tokio::test]
async fn g15_a_call_whose_caller_gave_up_before_its_timeout_is_not_carried_out() {
    let server = RedisServer::start();
    let way = Way::to(server.port()).await;
    let holder = RedisRegistry::builder(lazy_manager(&way.url()));
    let holder = holder.lease(LONG).command_timeout(LONG / 2).connect().await.unwrap();
    assert_eq!(one(&holder, hold(&record("before"))).await, Applied::Created);
    let (keys, before, late) = (server.keys(), scripts(&server), record("late"));
    let give_up = async || {
        let limit = 100 * MS;
        let call = holder.apply_before(vec![hold(&late)], Instant::now() + limit);
        assert!(timeout(limit, call).await.is_err());
    };
    // The server stands still, or the call is under way for longer.
    let stopped = Stopped::new(&server);
    give_up().await;
    drop(stopped);
    until_scripts(&server, before + 1).await;
    way.hold_back();
    give_up().await;
    way.let_through();
    // With something else to send, so that the way is looked at.
    holder.heartbeat().await.unwrap();
    until_scripts(&server, before + 3).await;
    assert_eq!(server.keys(), keys);
    // Nothing is sent for a caller that has gone.
    unavailable(&holder.apply_before(vec![hold(&late)], Instant::now()).await);
    assert_eq!(server.keys(), keys);
    let later = Instant::now() + PATIENCE;
    assert_eq!(holder.apply_before(vec![hold(&late)], later).await.unwrap(), [Applied::Created]);
}

/// A connection to a server whose clock seems to be another one, and to which the text of a script comes late.
#[derive(Clone)]
struct Odd {
    connection: MultiplexedConnection,
    /// Added to the time in each answer, in ms.
    ahead: Arc<AtomicI64>,
    /// How late an `EVAL` is sent, in ms.
    delay: Arc<AtomicU64>,
}

impl Odd {
    async fn to(server: &RedisServer) -> Self {
        let connection = Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
        Self { connection, ahead: Arc::default(), delay: Arc::default() }
    }

    fn shift(&self, mut answer: Value) -> Value {
        let ahead = self.ahead.load(Ordering::SeqCst);
        if let Value::Array(values) = &mut answer
            && let Some(Value::BulkString(first)) = values.first_mut()
            && let Some((word, time)) = String::from_utf8_lossy(first).split_once(' ')
        {
            *first = format!("{word} {}", time.parse::<i64>().unwrap() + ahead).into_bytes();
        }
        answer
    }
}

impl ConnectionLike for Odd {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let (odd, cmd) = (self.clone(), cmd.clone());
        let is_text = cmd.get_packed_command().starts_with(b"*") && {
            let packed = cmd.get_packed_command();
            packed.windows(8).take(16).any(|part| part == b"\r\nEVAL\r\n")
        };
        // In a task of its own, so that it is sent although the caller drops the call.
        let answer = tokio::spawn(async move {
            if is_text {
                sleep(odd.delay.load(Ordering::SeqCst) as u32 * MS).await;
            }
            let mut connection = odd.connection.clone();
            connection.req_packed_command(&cmd).await.map(|answer| odd.shift(answer))
        });
        Box::pin(async { answer.await.unwrap() })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[tokio::test]
async fn g15_a_script_whose_text_is_sent_again_keeps_its_deadline() {
    let server = RedisServer::start();
    let odd = Odd::to(&server).await;
    let holder = RedisRegistry::builder(odd.clone()).lease(LONG).command_timeout(LONG / 2).connect().await.unwrap();
    assert_eq!(one(&holder, hold(&record("before"))).await, Applied::Created);
    server.ask("SCRIPT FLUSH");
    let (keys, before, late) = (server.keys(), scripts(&server), record("late"));
    odd.delay.store(500, Ordering::SeqCst);
    let limit = 200 * MS;
    let call = holder.apply_before(vec![hold(&late)], Instant::now() + limit);
    assert!(timeout(limit, call).await.is_err());
    until_scripts(&server, before + 2).await;
    assert_eq!(server.keys(), keys);
    odd.delay.store(0, Ordering::SeqCst);
    assert_eq!(one(&holder, hold(&late)).await, Applied::Created);
}

#[tokio::test]
async fn g17_a_server_whose_clock_is_set_forward_fails_no_call() {
    let server = RedisServer::start();
    let odd = Odd::to(&server).await;
    let hour = 3_600_000;
    odd.ahead.store(-hour, Ordering::SeqCst);
    let holder = RedisRegistry::builder(odd.clone()).lease(LONG).command_timeout(LONG / 2).connect().await.unwrap();
    odd.ahead.store(0, Ordering::SeqCst);
    let before = scripts(&server);
    assert_eq!(holder.apply(vec![hold(&record("a"))]).await.unwrap(), [Applied::Created]);
    // Refused once, and sent again with a deadline by the new clock. From then on, each call is sent once.
    assert_eq!(scripts(&server) - before, 3, "EVALSHA, EVAL, EVALSHA");
    assert_eq!(holder.apply(vec![hold(&record("b"))]).await.unwrap(), [Applied::Created]);
    assert_eq!(scripts(&server) - before, 4);
    // One that cannot be known is given up.
    odd.ahead.store(-hour, Ordering::SeqCst);
    holder.heartbeat().await.unwrap();
    let (keys, before) = (server.keys(), scripts(&server));
    let answer = holder.apply(vec![hold(&record("c"))]).await;
    unavailable(&answer);
    assert!(answer.unwrap_err().to_string().contains("too late"));
    assert_eq!(scripts(&server) - before, 3);
    assert_eq!(server.keys(), keys);
}
