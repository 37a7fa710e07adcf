//! [`InFlight`]: a request in flight, and what ends it before the host does.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::layer::Shared;
use crate::{
    handle::ActiveSessions,
    session::Phase,
    shutdown::{OpenResponses, Slot},
    tracker::{Activity, Generation},
};

/// How long a stream may continue after the drain: the time for a last event that the host sends from another task.
const GOODBYE_GRACE: Duration = Duration::from_millis(20);

/// Lasts from the request's head to the response body's end. Its session has an activity for that time.
pub(super) struct InFlight {
    pub(super) shared: Arc<Shared>,
    /// The generation that was active when the request came, or that the response started. If the response changes
    /// this id, it changes this generation and no later one.
    pub(super) generation: Option<Arc<Generation>>,
    wait: Wait,
    pub(super) activity: Activity,
}

/// How it learns that it has to end, when the host is pending.
enum Wait {
    /// The host was not pending yet.
    None,
    Slot(Slot),
    /// For an event stream. Boxed, so that bodies and futures are `Unpin` if the host's are, and small.
    Stream(Pin<Box<dyn Future<Output = Terminated> + Send + Sync>>),
}

/// Why a request in flight ended before the host ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminated {
    /// The session of the stream has ended. The body ends without an error.
    SessionEnded,
    /// The handle is closed: the connection drain has timed out or was forced. The body ends with an error.
    Forced,
}

impl InFlight {
    #[inline]
    pub(super) fn begin(shared: &Arc<Shared>, generation: Option<Arc<Generation>>) -> Self {
        shared.shutdown.open_responses.begin();
        Self { shared: Arc::clone(shared), generation, wait: Wait::None, activity: Activity::Work }
    }

    #[inline]
    pub(super) fn sessions(&self) -> &ActiveSessions {
        &self.shared.sessions
    }

    #[inline]
    fn open_responses(&self) -> &OpenResponses {
        &self.shared.shutdown.open_responses
    }

    /// A listening stream is no work, and ends with its session if `end_streams` is on.
    #[inline(never)]
    pub(super) fn begin_stream(&mut self) {
        if let Some(generation) = self.generation.clone() {
            generation.begin_activity(Activity::Stream);
            self.end_activity(&generation);
            self.activity = Activity::Stream;
        }
        if self.sessions().inner.end_streams {
            self.end_with_session();
        }
    }

    fn end_with_session(&mut self) {
        let session_ended = until_session_ended(self.sessions().clone(), self.generation.clone());
        let closed = self.sessions().inner.shutdown.closed.clone();
        self.set_wait(Wait::Stream(Box::pin(async move {
            let (mut session_ended, mut closed) = (pin!(session_ended), pin!(closed.cancelled()));
            // `select!` polls neither once the host has used up its task's cooperative budget.
            poll_fn(|cx| match session_ended.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Terminated::SessionEnded),
                Poll::Pending => closed.as_mut().poll(cx).map(|()| Terminated::Forced),
            })
            .await
        })));
    }

    fn set_wait(&mut self, wait: Wait) {
        if let Wait::Slot(slot) = std::mem::replace(&mut self.wait, wait) {
            self.open_responses().cancel(&slot);
        }
    }

    /// Polled each time that the host is pending.
    #[inline(never)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Terminated> {
        let open_responses = &self.shared.shutdown.open_responses;
        let is_closed = match &mut self.wait {
            Wait::None => match open_responses.wait(cx) {
                Some(slot) => {
                    self.wait = Wait::Slot(slot);
                    false
                }
                None => true,
            },
            Wait::Slot(slot) => open_responses.wait_again(slot, cx),
            Wait::Stream(stream) => {
                let terminated = ready!(stream.as_mut().poll(cx));
                self.wait = Wait::None;
                return Poll::Ready(terminated);
            }
        };
        if is_closed { Poll::Ready(Terminated::Forced) } else { Poll::Pending }
    }

    /// Whether a body that was not pending has to end.
    pub(super) fn check(&mut self, cx: &mut Context<'_>, has_more: bool) -> Option<Terminated> {
        if matches!(self.wait, Wait::Stream(_))
            && let Poll::Ready(Terminated::SessionEnded) = self.poll(cx)
        {
            return Some(Terminated::SessionEnded);
        }
        (has_more && self.shared.phase() == Phase::Closed).then_some(Terminated::Forced)
    }

    #[inline]
    pub(super) fn end_activity(&self, generation: &Arc<Generation>) {
        self.shared.end_activity(generation, self.activity);
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        if let Wait::Slot(slot) = &self.wait {
            self.open_responses().cancel(slot);
        }
        if let Some(generation) = &self.generation {
            self.end_activity(generation);
        }
        self.open_responses().end();
    }
}

/// Waits for the end of the stream's session, or for the drain if it belongs to none. In a shutdown it waits for the
/// drain and the grace too.
async fn until_session_ended(sessions: ActiveSessions, generation: Option<Arc<Generation>>) {
    let drained = sessions.inner.shutdown.drained.clone();
    if generation.is_none() {
        drained.cancelled().await;
    }
    let mut next = generation;
    while let Some(generation) = next {
        let ended = generation.listen();
        // Compacted before this stream began to listen: it ends with the successor.
        next = if generation.is_compacted() { generation.successor() } else { None };
        if generation.is_active() {
            ended.cancelled().await;
        }
    }
    if sessions.phase() >= Phase::Closing {
        drained.cancelled().await;
        sleep_ignoring_budget(GOODBYE_GRACE.min(sessions.inner.shutdown.config.connection_drain_timeout / 4)).await;
    }
}

/// Like tokio's `sleep`, which stays pending while the task's cooperative budget is used up; this one does not.
async fn sleep_ignoring_budget(time: Duration) {
    let end = Instant::now() + time;
    let mut timer = pin!(sleep_until(end));
    poll_fn(|cx| match timer.as_mut().poll(cx) {
        Poll::Pending if Instant::now() < end => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}
