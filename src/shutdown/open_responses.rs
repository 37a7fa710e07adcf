//! [`OpenResponses`]: how many there are, and what wakes them when the handle is closed.
//!
//! Why no cancellation token for each: over HTTP/2 the host is pending once in most requests that have a body. A token
//! takes 700 instructions and an allocation for that, a slot takes 230 and none.

use std::{
    mem,
    task::{Context, Waker},
};

use slab::Slab;

use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, lock};

#[cfg(not(shuttle))]
const SHARDS: usize = 16;
#[cfg(shuttle)]
const SHARDS: usize = 1;

/// Up to this many slots stay allocated in an empty shard.
const SPARE_SLOTS: usize = 64;

/// Requests without a response head, and response bodies without an end.
#[derive(Debug, Default)]
pub(crate) struct OpenResponses {
    count: AtomicUsize,
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Waiting>);

/// Those whose host is pending.
#[derive(Debug, Default)]
struct Waiting {
    is_closed: bool,
    wakers: Slab<Waker>,
}

/// The place of one that waits; for [`OpenResponses::cancel`].
#[derive(Debug)]
pub(crate) struct Slot {
    shard: usize,
    key: usize,
}

impl OpenResponses {
    #[inline]
    pub(crate) fn begin(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn end(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// The task of `cx` is woken when the handle is closed; `None` if it is closed.
    ///
    /// The slot must be given to [`cancel`](Self::cancel). No waker is cloned, dropped or woken under a lock: that is the
    /// runtime's code.
    pub(crate) fn wait(&self, cx: &Context<'_>) -> Option<Slot> {
        let waker = cx.waker().clone();
        let shard = shard_of(&waker);
        let mut waiting = lock(&self.shards[shard].0);
        if waiting.is_closed {
            return None;
        }
        Some(Slot { shard, key: waiting.wakers.insert(waker) })
    }

    /// Returns true if the handle is closed. Otherwise the task of `cx` is woken when that happens, and no earlier one.
    pub(crate) fn wait_again(&self, slot: &Slot, cx: &Context<'_>) -> bool {
        let waker = cx.waker();
        {
            let waiting = self.waiting(slot);
            if waiting.is_closed {
                return true;
            }
            if waiting.wakers.get(slot.key).is_some_and(|known| known.will_wake(waker)) {
                return false;
            }
        }
        // It has moved to another task.
        let mut waker = waker.clone();
        let mut waiting = self.waiting(slot);
        if let Some(known) = waiting.wakers.get_mut(slot.key) {
            mem::swap(known, &mut waker);
        }
        waiting.is_closed
    }

    /// Must be called when the caller of [`wait`](Self::wait) waits no longer.
    pub(crate) fn cancel(&self, slot: &Slot) {
        let mut waiting = self.waiting(slot);
        let waker = waiting.wakers.try_remove(slot.key);
        let has_spare_slots = waiting.wakers.is_empty() && waiting.wakers.capacity() > SPARE_SLOTS;
        let spare = has_spare_slots.then(|| mem::take(&mut waiting.wakers));
        drop(waiting);
        drop((waker, spare));
    }

    /// Wakes all that wait, and lets no other begin to.
    pub(crate) fn close(&self) {
        for Shard(waiting) in &self.shards {
            let wakers = {
                let mut waiting = lock(waiting);
                waiting.is_closed = true;
                mem::take(&mut waiting.wakers)
            };
            wakers.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }

    fn waiting(&self, slot: &Slot) -> MutexGuard<'_, Waiting> {
        lock(&self.shards[slot.shard % SHARDS].0)
    }
}

/// Tasks are spread by the address of what they wake, which is aligned to 128 bytes in tokio.
fn shard_of(waker: &Waker) -> usize {
    let address = waker.data().addr() >> 7;
    (address ^ address >> 4) % SHARDS
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Woken {
        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn g10_closing_wakes_the_last_task_that_polled() {
        let responses = OpenResponses::default();
        let tasks = [(); 3].map(|()| Arc::new(Woken::default()));
        let wakers = tasks.clone().map(Waker::from);
        let moved = responses.wait(&Context::from_waker(&wakers[0])).expect("it is open");
        for waker in &wakers[..2] {
            for _ in 0..2 {
                assert!(!responses.wait_again(&moved, &Context::from_waker(waker)));
            }
        }
        let cancelled = responses.wait(&Context::from_waker(&wakers[2])).expect("it is open");
        responses.cancel(&cancelled);
        responses.close();
        assert_eq!(tasks.each_ref().map(|task| task.count()), [0, 1, 0]);
        assert!(responses.wait_again(&moved, &Context::from_waker(&wakers[1])));
        assert!(responses.wait(&Context::from_waker(&wakers[2])).is_none());
        responses.cancel(&moved);
    }

    #[test]
    fn slots_are_given_back_after_a_burst() {
        let responses = OpenResponses::default();
        let waker = Waker::noop();
        let slots = [(); 1000].map(|()| responses.wait(&Context::from_waker(waker)));
        let capacity = || responses.shards.iter().map(|shard| lock(&shard.0).wakers.capacity()).max();
        assert!(capacity() >= Some(1000));
        slots.iter().flatten().for_each(|slot| responses.cancel(slot));
        assert!(capacity() <= Some(SPARE_SLOTS));
    }
}

#[cfg(all(test, shuttle))]
mod shuttle_tests {
    use std::{sync::Arc, task::Wake};

    use shuttle::{sync::atomic::AtomicBool, thread};

    use super::*;
    use crate::tracker::shuttle_tests::explore;

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn g10_one_that_waits_is_woken_or_sees_the_close() {
        explore(|| {
            let responses = Arc::new(OpenResponses::default());
            let closing = Arc::clone(&responses);
            let closer = thread::spawn(move || closing.close());
            let tasks = [(); 2].map(|()| Arc::new(Woken(AtomicBool::new(false))));
            let [first, second] = tasks.each_ref().map(|task| Waker::from(Arc::clone(task)));
            let slot = responses.wait(&Context::from_waker(&first));
            let saw_close = slot.is_none_or(|slot| responses.wait_again(&slot, &Context::from_waker(&second)));
            closer.join().expect("it does not panic");
            assert!(saw_close || tasks[1].0.load(Ordering::SeqCst), "its last task is never woken");
        });
    }
}
