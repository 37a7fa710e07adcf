//! The conformance kit: [`check`] tries every promise of [`Registry`] on an implementation (feature
//! `registry-conformance`, for tests).
//!
//! Name the crate among your dev-dependencies with the feature, say in a [`Store`] how to make a holder and how to kill
//! one, and run the kit on an empty store. It needs a tokio runtime with time, and takes as long as about twenty
//! deaths take to be seen.
//!
//! Where the promises leave room the kit is content with either reading: the answer to a release that is repeated
//! after [`Others`](super::Applied::HeldElsewhere) may be [`Gone`](super::Applied::NotFound), and times need to be kept to the
//! millisecond only.

mod changes;
mod concurrency;
mod encoding;
mod holder;
mod idempotency;
mod recovery;

use std::{
    fmt::Debug,
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use self::holder::Holder;
use super::{Applied, Change, EndRecord, Orphan, Record, Registry};
use crate::session::{EndReason, GenerationId, Session, SessionId};

/// What the kit has to know of an implementation: how its holders live and die.
pub trait Store: Sync {
    /// The implementation.
    type Holder: Registry;

    /// A new holder on the store, with a lease of its own.
    fn holder(&self) -> impl Future<Output = Self::Holder> + Send;

    /// Does to a holder what the death of its process would: without [`release_lease`](Registry::release_lease), and back once its lease is
    /// certainly lost. All other holders keep beating meanwhile.
    fn kill(&self, holder: Self::Holder) -> impl Future<Output = ()> + Send;
}

/// Tries every promise of [`Registry`] on the store, which must be empty and nobody else's.
///
/// # Panics
///
/// At the first promise that is broken, saying which, what was expected and what came; and on any error that a call
/// answers.
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tower_session_end::registry::{Applied, Change, Orphan, Registry, RegistryError};
/// use tower_session_end::registry::conformance::{self, Store};
/// # struct MyRegistry;
/// # impl MyRegistry { async fn connect(_: &str) -> Self { Self } }
/// # impl Registry for MyRegistry {
/// #     async fn apply(&self, _: Vec<Change>) -> Result<Vec<Applied>, RegistryError> { unimplemented!() }
/// #     async fn heartbeat(&self) -> Result<(), RegistryError> { unimplemented!() }
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
    changes::births(&kit).await;
    changes::updates(&kit).await;
    changes::releases(&kit).await;
    changes::ends(&kit).await;
    changes::silent_ends(&kit).await;
    changes::order(&kit).await;
    idempotency::births_and_ends(&kit).await;
    idempotency::batches(&kit).await;
    encoding::ids(&kit).await;
    encoding::details(&kit).await;
    encoding::numbers(&kit).await;
    recovery::of_the_dead(&kit).await;
    recovery::beside_the_living(&kit).await;
    recovery::of_claims(&kit).await;
    recovery::in_portions(&kit).await;
    recovery::after_a_leave(&kit).await;
    concurrency::dropped_applies(&kit).await;
    concurrency::dropped_take_overs(&kit).await;
    concurrency::two_recoverers(&kit).await;
    concurrency::big_batches(&kit).await;
}

fn random() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    half() << 64 | half()
}

/// The store, and identities that nobody has used yet.
struct Kit<'a, S> {
    store: &'a S,
    instance: u128,
    generation: AtomicU64,
}

impl<S: Store> Kit<'_, S> {
    async fn holder(&self) -> Holder<S::Holder> {
        Holder::new(self.store.holder().await)
    }

    /// Ends a holder as SIGKILL would.
    async fn kill(&self, holder: Holder<S::Holder>) {
        self.store.kill(holder.into_inner().await).await;
    }

    /// The end of each part: everything was delivered or given up, so nobody finds anything.
    async fn nothing_is_owed(&self, holders: impl IntoIterator<Item = Holder<S::Holder>>) {
        for holder in holders {
            holder.release_lease().await;
        }
        let last = self.holder().await;
        same_all("with everything done, what is left to take over", &last.take_over_all().await, &[]);
        last.release_lease().await;
    }

    fn generation(&self) -> GenerationId {
        GenerationId::new(self.instance, self.generation.fetch_add(1, Ordering::Relaxed))
    }

    /// A generation of a session that nobody knows yet.
    fn record(&self) -> Record {
        let generation = self.generation();
        let id = SessionId::with_max_len(format!("session-{generation}"), usize::MAX).expect("visible ASCII");
        self.again(&id, generation)
    }

    /// `count` of them.
    fn records(&self, count: usize) -> Vec<Record> {
        (0..count).map(|_| self.record()).collect()
    }

    /// Another generation of a session.
    fn next(&self, record: &Record) -> Record {
        self.again(&record.session.id, self.generation())
    }

    fn again(&self, id: &SessionId, generation: GenerationId) -> Record {
        let session =
            Session::new(id.clone()).with_key(format!("key of {generation}")).with_attribute("tenant", "acme");
        Record::new(session, generation, now())
    }
}

/// Now, in whole milliseconds.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(since.as_millis() as u64)
}

fn ended(reason: EndReason, requests: u64) -> EndRecord {
    EndRecord::new(reason, None, now(), requests)
}

fn hold(record: &Record) -> Change {
    Change::Hold(record.clone())
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

#[track_caller]
fn same<T: PartialEq + Debug>(what: &str, got: &T, expected: &T) {
    assert!(got == expected, "{what}:\n  expected {expected:?}\n  but got  {got:?}");
}

/// As [`same`], and says where the first difference is.
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
