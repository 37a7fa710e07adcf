//! The conformance kit: [`check`] tests whether an implementation fulfils the contract of [`Registry`] (feature
//! `registry-conformance`, for tests).
//!
//! Enable the feature in the dev-dependencies, implement [`Store`], which creates and kills holders, and run [`check`]
//! on an empty store. The kit needs a tokio runtime with time enabled. It kills about forty holders and waits for each
//! lease to expire.
//!
//! The kit accepts every answer that the contract permits. Times need a precision of one millisecond only.

mod adoption;
mod attempts;
mod changes;
mod concurrency;
mod dead_letters;
mod encoding;
mod generations;
mod groups;
mod holder;
mod idempotency;
mod notices;
mod recovery;

use std::{
    fmt::Debug,
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use self::holder::Holder;
use super::{Applied, Change, EndRecord, Heartbeat, HoldMode, Orphan, Record, Registry};
use crate::session::{EndReason, GenerationId, Session, SessionId};

/// Creates and kills the holders of an implementation.
pub trait Store: Sync {
    /// The implementation.
    type Holder: Registry;

    /// Creates a holder on the store, with a lease of its own.
    fn holder(&self) -> impl Future<Output = Self::Holder> + Send;

    /// Simulates the death of a holder's process, without [`release_lease`](Registry::release_lease). Returns once its
    /// lease has certainly expired. The kit sends the heartbeats of the other holders meanwhile.
    fn kill(&self, holder: Self::Holder) -> impl Future<Output = ()> + Send;

    /// Asks for a delivery of the [dead letter](Change::DeadLetter) of this generation, as an operator of the implementation
    /// does. Returns `true`, or `false` if the implementation has no such function. The holder is one that the kit uses.
    ///
    /// The default returns `false`: the kit then does not test the redelivery, and leaves nine dead letters in the store.
    fn redeliver(&self, holder: &Self::Holder, generation: GenerationId) -> impl Future<Output = bool> + Send {
        let _ = (holder, generation);
        std::future::ready(false)
    }
}

/// Tests the contract of [`Registry`] on the store, which must be empty and not be used by anything else.
///
/// # Panics
///
/// If an answer is wrong (the message names the case, the expected and the actual answer), or if a call returns an
/// error.
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tower_session_end::registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError};
/// use tower_session_end::registry::conformance::{self, Store};
/// # struct MyRegistry;
/// # impl MyRegistry { async fn connect(_: &str) -> Self { Self } }
/// # impl Registry for MyRegistry {
/// #     async fn apply(&self, _: Vec<Change>) -> Result<Vec<Applied>, RegistryError> { unimplemented!() }
/// #     async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> { unimplemented!() }
/// #     async fn claim_orphans(&self, _: usize) -> Result<Vec<Orphan>, RegistryError> { unimplemented!() }
/// #     async fn release_lease(&self) -> Result<(), RegistryError> { unimplemented!() }
/// # }
///
/// struct MyStore;
///
/// impl Store for MyStore {
///     type Holder = MyRegistry;
///
///     async fn holder(&self) -> MyRegistry {
///         MyRegistry::connect("test").await
///     }
///
///     async fn kill(&self, holder: MyRegistry) {
///         drop(holder);
///         tokio::time::sleep(Duration::from_millis(600)).await; // longer than the lease
///     }
/// }
///
/// #[tokio::main]
/// async fn main() {
///     conformance::check(&MyStore).await;
/// }
/// ```
pub async fn check<S: Store>(store: &S) {
    let kit = Kit { store, instance: random(), generation: AtomicU64::new(1) };
    changes::holds(&kit).await;
    changes::updates(&kit).await;
    changes::releases(&kit).await;
    changes::ends(&kit).await;
    changes::silent_ends(&kit).await;
    generations::joined(&kit).await;
    generations::beside_each_other(&kit).await;
    generations::found(&kit).await;
    generations::gone(&kit).await;
    generations::claimed(&kit).await;
    notices::of_ends_and_forgets(&kit).await;
    notices::in_pages(&kit).await;
    attempts::are_stored(&kit).await;
    attempts::are_no_claims(&kit).await;
    dead_letters::are_kept(&kit).await;
    dead_letters::are_delivered_again(&kit).await;
    idempotency::starts_and_ends(&kit).await;
    idempotency::sequences(&kit).await;
    groups::in_any_order(&kit).await;
    encoding::ids(&kit).await;
    encoding::details(&kit).await;
    encoding::numbers(&kit).await;
    recovery::after_a_death(&kit).await;
    recovery::of_shared_sessions(&kit).await;
    recovery::of_claimed_ends(&kit).await;
    recovery::in_batches(&kit).await;
    recovery::after_a_release(&kit).await;
    adoption::of_a_half_read_holder(&kit).await;
    adoption::before_a_hold(&kit).await;
    adoption::beside_other_holders(&kit).await;
    adoption::by_two_holders(&kit).await;
    concurrency::dropped_applies(&kit).await;
    concurrency::dropped_recoveries(&kit).await;
    concurrency::concurrent_recoverers(&kit).await;
    concurrency::two_dead_and_two_recoverers(&kit).await;
    concurrency::big_batches(&kit).await;
}

fn random() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    half() << 64 | half()
}

/// The store, and a source of unused identities.
struct Kit<'a, S> {
    store: &'a S,
    instance: u128,
    generation: AtomicU64,
}

impl<S: Store> Kit<'_, S> {
    async fn holder(&self) -> Holder<S::Holder> {
        Holder::new(self.store.holder().await)
    }

    /// Kills a holder, as SIGKILL would.
    async fn kill(&self, holder: Holder<S::Holder>) {
        self.store.kill(holder.into_inner().await).await;
    }

    /// Asks for a delivery of a dead letter. False if the implementation cannot.
    async fn redeliver(&self, holder: &Holder<S::Holder>, record: &Record) -> bool {
        self.store.redeliver(holder.registry(), record.generation).await
    }

    /// Ends each part: everything was delivered or forgotten, and acknowledged. There are no orphans and no notices.
    async fn nothing_is_pending(&self, holders: impl IntoIterator<Item = Holder<S::Holder>>) {
        for holder in holders {
            holder.expect_notices("notices at the end", &[]).await;
            holder.release_lease().await;
        }
        let last = self.holder().await;
        same_all("orphans after everything was delivered", &last.claim_all().await, &[]);
        last.release_lease().await;
    }

    fn generation(&self) -> GenerationId {
        GenerationId::new(self.instance, self.generation.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates the record of a new session.
    fn record(&self) -> Record {
        let generation = self.generation();
        let id = SessionId::with_max_len(format!("session-{generation}"), usize::MAX).expect("visible ASCII");
        self.again(&id, generation)
    }

    /// Creates `count` such records.
    fn records(&self, count: usize) -> Vec<Record> {
        (0..count).map(|_| self.record()).collect()
    }

    /// Creates a record of another generation of the session.
    fn next(&self, record: &Record) -> Record {
        self.again(&record.session.id, self.generation())
    }

    fn again(&self, id: &SessionId, generation: GenerationId) -> Record {
        let session =
            Session::new(id.clone()).with_key(format!("key of {generation}")).with_attribute("tenant", "acme");
        Record::new(session, generation, now())
    }
}

/// The current time, in whole milliseconds.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(since.as_millis() as u64)
}

fn ended(reason: EndReason, requests: u64) -> EndRecord {
    EndRecord::new(reason, None, now(), requests)
}

fn hold(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::JoinOrCreate }
}

/// Does not join another generation of the id.
fn hold_beside(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::Create }
}

/// Creates no record.
fn find(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::Join }
}

fn update(record: &Record) -> Change {
    Change::Update(record.clone())
}

fn release(record: &Record, requests: u64) -> Change {
    let end = ended(EndReason::Shutdown, requests);
    Change::Release { id: record.session.id.clone(), generation: record.generation, end }
}

fn end(record: &Record, requests: u64) -> Change {
    end_as(record, ended(EndReason::Deleted, requests))
}

fn end_as(record: &Record, end: EndRecord) -> Change {
    Change::End { id: record.session.id.clone(), generation: record.generation, end }
}

fn keep(record: &Record) -> Change {
    Change::Keep { id: record.session.id.clone(), generation: record.generation }
}

fn forget(record: &Record) -> Change {
    Change::Forget { id: record.session.id.clone(), generation: record.generation }
}

fn done(record: &Record) -> Change {
    Change::Delivered { generation: record.generation }
}

fn attempted(record: &Record, attempts: u32) -> Change {
    Change::Attempted { generation: record.generation, attempts }
}

fn dead_letter(record: &Record, error: &str) -> Change {
    Change::DeadLetter { generation: record.generation, error: error.to_owned() }
}

fn acknowledge(record: &Record) -> Change {
    Change::Acknowledge { id: record.session.id.clone(), generation: record.generation }
}

#[track_caller]
fn same<T: PartialEq + Debug>(what: &str, got: &T, expected: &T) {
    assert!(got == expected, "{what}:\n  expected {expected:?}\n  but got  {got:?}");
}

/// As [`same`]; the message names the first difference.
#[track_caller]
fn same_all<T: PartialEq + Debug>(what: &str, got: &[T], expected: &[T]) {
    let (of_got, of_expected) = (got.len(), expected.len());
    let first = (0..of_got.max(of_expected)).find(|&i| got.get(i) != expected.get(i));
    if let Some(i) = first {
        let (got, expected) = (got.get(i), expected.get(i));
        panic!(
            "{what}: number {i} of {of_expected}:\n  expected {expected:?}\n  but got  {got:?}, in an answer of {of_got}"
        );
    }
}
