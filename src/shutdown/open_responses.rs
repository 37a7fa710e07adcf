//! [`OpenResponses`]: how many there are, and what wakes them when the handle is closed.
//!
//! Why no cancellation token for each: over HTTP/2 the host is pending once in most requests that have a body. A token
//! takes 700 instructions and an allocation for that, a slot takes 230 and none.

use std::{
    mem,
    task::{Context, Waker},
};

use slab::Slab;

use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

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
    shard: u32,
    key: u32,
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

    /// Returns true if the handle is closed. Otherwise the task of `cx` is woken when that happens.
    ///
    /// `slot` is the place of the caller, and `None` at first. No waker is cloned, dropped or woken under a lock: that is
    /// the runtime's code.
    pub(crate) fn poll_closed(&self, slot: &mut Option<Slot>, cx: &Context<'_>) -> bool {
        let waker = cx.waker();
        let Some(place) = slot else {
            let shard = shard_of(waker);
            let waker = waker.clone();
            let mut waiting = self.waiting(shard);
            if waiting.is_closed {
                return true;
            }
            let key = waiting.wakers.insert(waker);
            // More slots would take 100 GB.
            *slot = u32::try_from(key).ok().map(|key| Slot { shard, key });
            return false;
        };
        {
            let waiting = self.waiting(place.shard);
            if waiting.is_closed {
                return true;
            }
            if waiting.wakers.get(place.key as usize).is_some_and(|known| known.will_wake(waker)) {
                return false;
            }
        }
        // It has moved to another task.
        let mut waker = waker.clone();
        let mut waiting = self.waiting(place.shard);
        if let Some(known) = waiting.wakers.get_mut(place.key as usize) {
            mem::swap(known, &mut waker);
        }
        waiting.is_closed
    }

    /// Must be called when the caller of [`poll_closed`](Self::poll_closed) waits no longer.
    pub(crate) fn cancel(&self, slot: &Slot) {
        let _dropped_after_the_lock = {
            let mut waiting = self.waiting(slot.shard);
            let waker = waiting.wakers.try_remove(slot.key as usize);
            let spare = waiting.wakers.is_empty() && waiting.wakers.capacity() > SPARE_SLOTS;
            (waker, spare.then(|| mem::take(&mut waiting.wakers)))
        };
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

    fn waiting(&self, shard: u32) -> crate::sync::MutexGuard<'_, Waiting> {
        lock(&self.shards[shard as usize % SHARDS].0)
    }
}

/// Tasks are spread by the address of what they wake, which is aligned to 128 bytes in tokio.
fn shard_of(waker: &Waker) -> u32 {
    let address = waker.data().addr() >> 7;
    ((address ^ address >> 4) % SHARDS) as u32
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
        let (mut moved, mut cancelled) = (None, None);
        for waker in &wakers[..2] {
            for _ in 0..2 {
                assert!(!responses.poll_closed(&mut moved, &Context::from_waker(waker)));
            }
        }
        assert!(!responses.poll_closed(&mut cancelled, &Context::from_waker(&wakers[2])));
        responses.cancel(&cancelled.take().expect("it waits"));
        responses.close();
        assert_eq!(tasks.each_ref().map(|task| task.count()), [0, 1, 0]);
        assert!(responses.poll_closed(&mut moved, &Context::from_waker(&wakers[1])));
        assert!(responses.poll_closed(&mut cancelled, &Context::from_waker(&wakers[2])));
        assert!(cancelled.is_none());
        responses.cancel(&moved.take().expect("it waited"));
    }

    #[test]
    fn slots_are_given_back_after_a_burst() {
        let responses = OpenResponses::default();
        let waker = Waker::noop();
        let mut slots = [(); 1000].map(|()| None);
        slots.iter_mut().for_each(|slot| assert!(!responses.poll_closed(slot, &Context::from_waker(waker))));
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
            let mut slot = None;
            let mut saw_close = false;
            for task in &tasks {
                let waker = Waker::from(Arc::clone(task));
                saw_close = responses.poll_closed(&mut slot, &Context::from_waker(&waker));
            }
            closer.join().expect("it does not panic");
            assert!(saw_close || tasks[1].0.load(Ordering::SeqCst), "its last task is never woken");
        });
    }
}
