//! One call of a hook. A panic is caught and becomes an error of that hook.

use std::{fmt, future::poll_fn, sync::Arc, task::Poll};

use serde::{Serialize, Serializer};
use tokio::time::{Instant, timeout_at};

use super::{Hook, HookFuture, Hooks, Named};
use crate::{
    error::BoxError,
    observability::{HookEvent, HookMeter, HookSpan, Stopwatch, error_chain},
    panic::{Panic, catch},
    session::{GenerationId, SessionId},
};

/// A hook that returned an error, panicked, or exceeded the hook timeout.
///
/// With a [`registry`](crate::ActiveSessionsBuilder::registry) the end is delivered to it again. Without one, the event counts
/// as delivered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HookFailure {
    /// The session of the event. It is serialized in redacted form.
    #[serde(serialize_with = "redacted")]
    pub session_id: SessionId,
    /// The generation of the event.
    pub generation: GenerationId,
    /// The hook's name, or the file and line of its registration.
    pub hook: String,
    /// The error.
    pub error: HookError,
}

fn redacted<S: Serializer>(id: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&id.redacted())
}

/// The error of a hook.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HookError {
    /// The hook returned this error.
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The hook panicked with this message.
    Panicked(String),
    /// The hook exceeded
    /// [`hook_timeout`](crate::ActiveSessionsBuilder::hook_timeout) and was dropped.
    TimedOut,
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::TimedOut => f.write_str("took longer than the hook timeout"),
        }
    }
}

impl std::error::Error for HookError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its text is this error's text already.
            Self::Failed(error) => error.source(),
            Self::Panicked(_) | Self::TimedOut => None,
        }
    }
}

impl Serialize for HookError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&error_chain(self))
    }
}

impl From<Panic> for HookError {
    fn from(panic: Panic) -> Self {
        Self::Panicked(panic.into_message())
    }
}

/// Calls one hook with the event.
pub(super) fn call_one<E: HookEvent>(
    hook: &Named<dyn Hook<E>>,
    event: E,
    expires: Option<Instant>,
    on_first_pending: impl FnOnce(),
) -> impl Future<Output = Option<HookError>> {
    let mut call = [Call::new(hook, 0, event)];
    async move {
        run_all(&mut call, expires, on_first_pending).await;
        call[0].take_error()
    }
}

/// Calls every hook with the event, concurrently; with `only`, those with these numbers. Resolves to the numbers and errors
/// of those that failed.
///
/// An `async fn` would store the event twice in its future, and each busy worker holds one of these futures.
pub(super) fn call_all<E: HookEvent + Clone>(
    hooks: &Hooks<E>,
    only: Option<&[usize]>,
    event: E,
    expires: Option<Instant>,
    on_first_pending: impl FnOnce(),
) -> impl Future<Output = Vec<(usize, HookError)>> {
    let mut calls = match (hooks.as_slice(), only) {
        // The usual case, without an allocation.
        ([hook], None) => Calls::One([Call::new(hook, 0, event)]),
        (hooks, only) => {
            let is_called = |number: &usize| only.is_none_or(|only| only.contains(number));
            let numbers = (0..hooks.len()).filter(is_called);
            Calls::Many(numbers.map(|number| Call::new(&hooks[number], number, event.clone())).collect())
        }
    };
    async move {
        run_all(calls.as_mut(), expires, on_first_pending).await;
        let calls = calls.as_mut().iter_mut();
        calls.filter_map(|call| Some((call.number, call.take_error()?))).collect()
    }
}

enum Calls<'a> {
    One([Call<'a>; 1]),
    Many(Vec<Call<'a>>),
}

impl<'a> Calls<'a> {
    fn as_mut(&mut self) -> &mut [Call<'a>] {
        match self {
            Self::One(call) => call,
            Self::Many(calls) => calls,
        }
    }
}

/// Polls all calls until the last one completes. At `expires`, calls that still run are dropped.
/// `on_first_pending` is called once, if the first poll leaves a call pending.
async fn run_all(calls: &mut [Call<'_>], expires: Option<Instant>, on_first_pending: impl FnOnce()) {
    let mut on_first_pending = Some(on_first_pending);
    let all = poll_fn(|cx| {
        let mut pending = false;
        for call in &mut *calls {
            pending |= call.poll(cx).is_pending();
        }
        if !pending {
            return Poll::Ready(());
        }
        if let Some(callback) = on_first_pending.take() {
            callback();
        }
        Poll::Pending
    });
    let Some(expires) = expires else { return all.await };
    if timeout_at(expires, all).await.is_err() {
        for call in calls {
            if matches!(call.state, State::Running(_)) {
                call.complete(Some(HookError::TimedOut));
            }
        }
    }
}

/// A running or completed hook. Panics of its call, its polls and its drop are caught.
struct Call<'a> {
    /// The number of the hook.
    number: usize,
    meter: &'a HookMeter,
    began: Stopwatch,
    span: HookSpan,
    state: State<'a>,
}

enum State<'a> {
    Running(HookFuture<'a>),
    Done(Option<HookError>),
}

impl<'a> Call<'a> {
    fn new<E: HookEvent>(hook: &'a Named<dyn Hook<E>>, number: usize, event: E) -> Self {
        let Named { name, meter, hook } = hook;
        let began = Stopwatch::start();
        let call = || {
            let span = HookSpan::new(name, &event);
            let entered = span.enter();
            let future = hook.call(event);
            drop(entered);
            (span, future)
        };
        let (span, state) = match catch(call) {
            Ok((span, future)) => (span, State::Running(future)),
            Err(panic) => {
                meter.over(began, true);
                (HookSpan::NONE, State::Done(Some(panic.into())))
            }
        };
        Self { number, meter, began, span, state }
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let State::Running(future) = &mut self.state else {
            return Poll::Ready(());
        };
        let poll = || {
            let _entered = self.span.enter();
            future.as_mut().poll(cx)
        };
        let error = match catch(poll) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => result.err().map(|error: BoxError| HookError::Failed(error.into())),
            Err(panic) => Some(panic.into()),
        };
        self.complete(error);
        Poll::Ready(())
    }

    /// Sets the result, and drops the future within its span.
    fn drop_future(&mut self, error: Option<HookError>) {
        let before = std::mem::replace(&mut self.state, State::Done(error));
        let span = &self.span;
        let drop_in_span = || {
            let _entered = span.enter();
            drop(before);
        };
        if let Err(panic) = catch(drop_in_span) {
            self.state = State::Done(Some(panic.into()));
        }
    }

    /// As [`drop_future`](Self::drop_future), and records the metrics.
    fn complete(&mut self, error: Option<HookError>) {
        self.drop_future(error);
        self.meter.over(self.began, matches!(self.state, State::Done(Some(_))));
    }

    fn take_error(&mut self) -> Option<HookError> {
        match &mut self.state {
            State::Done(error) => error.take(),
            State::Running(_) => None,
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if matches!(self.state, State::Running(_)) {
            self.drop_future(None);
        }
    }
}
