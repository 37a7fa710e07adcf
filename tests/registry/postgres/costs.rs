//! How many statements a group takes, and how long a recovery.

use std::time::Instant;

use sqlx::postgres::PgPoolOptions;
use tower_session_end::registry::{Change, PostgresRegistry, Record, Registry};

use super::support::{
    LONG, PostgresServer, claim_orphans, dead_letter, done, end, hold, holder, is_installed, new_schema, record,
    records, release, shared,
};

/// Makes the change of a record.
type Kind = fn(&Record) -> Change;

/// Counts the statements that one call sends.
struct Counter {
    server: PostgresServer,
    registry: PostgresRegistry,
}

impl Counter {
    /// A server of its own that logs each statement.
    async fn new() -> Self {
        let server = PostgresServer::start(&["fsync=off", "log_statement=all", "log_line_prefix=%a:"]);
        let options = PgPoolOptions::new().max_connections(1);
        let url = format!("{}?application_name=counted", server.url());
        let pool = options.connect(&url).await.unwrap();
        let registry = PostgresRegistry::builder(pool).lease(LONG).connect().await.unwrap();
        Self { server, registry }
    }

    /// The statements and the commits of one call.
    async fn count(&self, changes: Vec<Change>) -> (usize, usize) {
        let before = self.server.log().len();
        self.registry.apply(changes).await.unwrap();
        let log = self.server.log();
        let lines: Vec<_> = log[before..].lines().filter(|line| line.starts_with("counted:LOG:")).collect();
        (lines.len(), lines.iter().filter(|line| line.ends_with(" COMMIT")).count())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_1000_takes_as_many_statements_as_one_change_and_one_commit() {
    if !is_installed() {
        return;
    }
    let counter = Counter::new().await;
    let all = records(3000);
    let (first, rest) = all.split_at(1);
    let (second, rest) = rest.split_at(100);
    let kinds: [(&str, Kind); 4] =
        [("starts", hold), ("repeated starts", hold), ("releases", |record| release(record, 1)), ("deliveries", done)];
    for (what, change) in kinds {
        let mut counts = Vec::new();
        for some in [first, second, &rest[..1000]] {
            counts.push(counter.count(some.iter().map(change).collect()).await);
        }
        println!("{what}: (statements, commits) for 1, 100 and 1,000: {counts:?}");
        assert!(counts.iter().all(|(statements, commits)| *statements <= 8 && *commits == 1), "{what}: {counts:?}");
        assert!(counts.iter().all(|count| *count == counts[0]), "{what}: {counts:?}");
    }
    // Changes of all kinds in one call.
    let all = records(1000);
    counter.registry.apply(all[..800].iter().map(hold).collect()).await.unwrap();
    counter.registry.apply(all[600..800].iter().map(end).collect()).await.unwrap();
    let changes = (all[..200].iter().map(|record| release(record, 1)))
        .chain(all[200..400].iter().map(end))
        .chain(all[400..500].iter().map(|record| Change::Update(record.clone())))
        .chain(
            all[500..600]
                .iter()
                .map(|record| Change::Forget { id: record.session.id.clone(), generation: record.generation }),
        )
        .chain(all[600..700].iter().map(done))
        .chain(all[700..800].iter().map(|record| dead_letter(record, "error")))
        .chain(all[800..].iter().map(hold));
    let (statements, commits) = counter.count(changes.collect()).await;
    println!("1,000 changes of all kinds: {statements} statements");
    assert!(statements <= 16 && commits == 1, "{statements} statements, {commits} commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_20000_sessions_are_recovered_in_pages() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let dead = holder(server, &schema).await;
    let sessions: usize = std::env::var("SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let start = Instant::now();
    let mut slowest = std::time::Duration::ZERO;
    for first in (0..sessions).step_by(1000) {
        let some: Vec<_> = (first..first + 1000).map(|n| record(&format!("session-{n}"))).collect();
        let call = Instant::now();
        dead.apply(some.iter().map(hold).collect()).await.unwrap();
        slowest = slowest.max(call.elapsed());
    }
    println!("{sessions} starts in {:.1?}, the slowest group of 1,000 in {slowest:.0?}", start.elapsed());
    dead.release_lease().await.unwrap();
    let survivor = holder(server, &schema).await;
    let start = Instant::now();
    let orphans = claim_orphans(&survivor).await;
    println!("{sessions} orphans claimed in {:.1?}", start.elapsed());
    assert_eq!(orphans.len(), sessions);
    let start = Instant::now();
    for some in orphans.chunks(1000) {
        survivor.apply(some.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    }
    println!("{sessions} ends delivered in {:.1?}", start.elapsed());
    assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".sessions")), "0");
}
