//! The progress of a drain, for progress bars and logs.
//!
//! Nothing is counted for it: a reading is the sum of the tracker's own counts. So a drain that is not watched pays
//! nothing, and one that is pays for each reading, not for each hook.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Shutdown, state::ShutdownProgress};
use crate::session::Phase;

/// The least time between two readings of one watch, but for the final one.
const READING_INTERVAL: Duration = Duration::from_millis(100);

/// How far a drain is: a reading of a [`DrainWatch`].
///
/// `Display` shows the two counts: `3 of 10 sessions have ended`.
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let sessions = ActiveSessions::builder().build().unwrap();
/// sessions.note("a");
/// let _ = sessions.drain(EndReason::Shutdown).await;
///
/// let progress = sessions.drain_progress().now();
/// assert_eq!((progress.ended, progress.of), (1, 1));
/// assert_eq!(progress.to_string(), "1 of 1 sessions have ended");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainProgress {
    /// Sessions that need nothing more: all their hooks are over, with success or not, or they were released without
    /// an end. Never more than [`of`](Self::of).
    pub ended: u64,
    /// All sessions of the shutdown so far: those that were active or ending when the drain began, and those that have
    /// started since. 0 until a drain begins.
    pub of: u64,
    /// When the drain stops waiting for hooks. `None` until a drain begins, and if
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) is `Duration::MAX`.
    pub deadline: Option<std::time::Instant>,
}

impl fmt::Display for DrainProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} sessions have ended", self.ended, self.of)
    }
}

/// Watches a drain; made by [`ActiveSessions::drain_progress`](crate::ActiveSessions::drain_progress).
///
/// A clone is independent: each has its own last reading. A watch does not keep the handle alive.
#[derive(Clone)]
#[must_use = "a watch reports nothing by itself: call `now` or `changed`"]
pub struct DrainWatch {
    shutdown: Weak<Shutdown>,
    state: watch::Receiver<ShutdownProgress>,
    last: Option<DrainProgress>,
    /// `None` until a drain has begun.
    next_reading: Option<Instant>,
}

impl DrainWatch {
    /// The progress at this moment. All zero until a drain begins, and when the handle has been dropped.
    ///
    /// Later readings are never less, neither in [`ended`](DrainProgress::ended) nor in [`of`](DrainProgress::of). A
    /// reading takes the locks of the 2,048 shards of the tracker, one after the other: about 0.1 ms. It is for a
    /// timer, not for each request.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, DrainProgress, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let watch = sessions.drain_progress();
    /// assert_eq!(watch.now(), DrainProgress::default()); // no drain has begun
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// assert_eq!(watch.now().ended, 1);
    /// # }
    /// ```
    #[must_use]
    pub fn now(&self) -> DrainProgress {
        self.shutdown.upgrade().and_then(|shutdown| shutdown.progress()).unwrap_or_default()
    }

    /// Waits until a drain has begun, and the progress differs from the last one that this method has returned; returns
    /// it. Returns `None` when all is over: when [`finish`](crate::ActiveSessions::finish) has returned, or, if none
    /// runs, when the drain has. Returns `None` also when the handle has been dropped.
    ///
    /// The first call returns as soon as a drain has begun, or at once if one has. Later ones return at most 10 times a
    /// second: the changes in between are one. The final progress comes as soon as all is over, and then `None`. In it
    /// [`ended`](DrainProgress::ended) is less than [`of`](DrainProgress::of) if hooks are unfinished.
    ///
    /// # Panics
    ///
    /// While a drain runs, outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call returns what this one would have returned, or a later progress.
    ///
    /// # Examples
    ///
    /// A line a second in a drain that takes longer than that:
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::sleep;
    /// use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = ActiveSessions::builder()
    ///     .drain_timeout(Duration::from_secs(10))
    ///     .on_session_end(async |end: SessionEnd| sleep(Duration::from_secs(end.session.id.as_str().parse().unwrap())).await)
    ///     .build()?;
    /// for seconds in 1..=4 {
    ///     sessions.note(seconds.to_string());
    /// }
    ///
    /// let mut watch = sessions.drain_progress();
    /// let lines = tokio::spawn(async move {
    ///     let mut lines = 0;
    ///     while let Some(_) = watch.changed().await {
    ///         // What changes in this second is in the next line.
    ///         sleep(Duration::from_secs(1)).await;
    ///         println!("{}", watch.now());
    ///         lines += 1;
    ///     }
    ///     lines
    /// });
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// assert!((4..=6).contains(&lines.await?));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn changed(&mut self) -> Option<DrainProgress> {
        loop {
            let is_over = self.is_over();
            if let Some(next) = self.next_reading.filter(|_| !is_over)
                && let Ok(change) = timeout_at(next, self.state.changed()).await
            {
                // It fails once the handle is dropped.
                change.ok()?;
                continue;
            }
            let progress = self.shutdown.upgrade()?.progress();
            self.next_reading = progress.and(Some(Instant::now() + READING_INTERVAL));
            if progress.is_some() && progress != self.last {
                self.last = progress;
                return progress;
            }
            if is_over {
                return None;
            }
            if progress.is_none() {
                self.state.changed().await.ok()?;
            }
        }
    }

    /// Marks the present state as seen. Called before the counts are read, so a later change of the state is not missed.
    fn is_over(&mut self) -> bool {
        let state = self.state.borrow_and_update();
        let is_closed = || self.shutdown.upgrade().is_none_or(|shutdown| shutdown.tracker.phase() == Phase::Closed);
        state.finishing == 0 && (state.is_drained() || state.has_drain() && is_closed())
    }
}

impl fmt::Debug for DrainWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainWatch").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Shutdown {
    pub(crate) fn watch(self: &Arc<Self>) -> DrainWatch {
        DrainWatch { shutdown: Arc::downgrade(self), state: self.state.subscribe(), last: None, next_reading: None }
    }

    /// `None` until a drain begins. It counts from the beginning of the first drain, as the final report does.
    fn progress(&self) -> Option<DrainProgress> {
        let (first, deadline) = self.state.first_drain_and_deadline()?;
        let (before, now) = (&first.baseline, self.tracker.counts());
        Some(DrainProgress {
            ended: now.over() - before.over(),
            of: before.unfinished() + now.starts - before.starts,
            deadline: deadline.map(Instant::into_std),
        })
    }
}
