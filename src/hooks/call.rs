//! One call of a hook. A panic becomes an error of that hook alone.

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

/// A hook that failed: it returned an error, panicked, or took longer than the hook timeout.
///
/// The session's event counts as delivered, and is not delivered again.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HookFailure {
    /// The session of the event.
    #[serde(serialize_with = "redacted")]
    pub session_id: SessionId,
    /// Its generation.
    pub generation: GenerationId,
    /// The hook: its name, or the call site where it was registered.
    pub hook: String,
    /// The error.
    pub error: HookError,
}

fn redacted<S: Serializer>(id: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&id.redacted())
}

/// Why a hook failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HookError {
    /// It returned this error.
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// It panicked, with this message.
    Panicked(String),
    /// It took longer than the hook timeout and was dropped.
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

/// A hook's future until it is over. Panics of the call, the polls and the drop are caught.
pub(super) struct Call<'a> {
    name: &'a str,
    meter: &'a HookMeter,
    began: Stopwatch,
    span: HookSpan,
    state: State<'a>,
}

enum State<'a> {
    Running(HookFuture<'a>),
    Over(Option<HookError>),
}

impl<'a> Call<'a> {
    pub(super) fn new<E: HookEvent>(hook: &'a Named<dyn Hook<E>>, event: E) -> Self {
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
                (HookSpan::NONE, State::Over(Some(panic.into())))
            }
        };
        Self { name, meter, began, span, state }
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

    fn finish(&mut self, error: Option<HookError>) {
        let before = std::mem::replace(&mut self.state, State::Over(error));
        let span = &self.span;
        let drop_within = || {
            let _entered = span.enter();
            drop(before);
        };
        if let Err(panic) = catch(drop_within) {
            self.state = State::Over(Some(panic.into()));
        }
    }

    /// As above, of its own accord or because its time was over.
    fn complete(&mut self, error: Option<HookError>) {
        self.finish(error);
        self.meter.over(self.began, matches!(self.state, State::Over(Some(_))));
    }

    fn take_error(&mut self) -> Option<HookError> {
        match &mut self.state {
            State::Over(error) => error.take(),
            State::Running(_) => None,
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if matches!(self.state, State::Running(_)) {
            self.finish(None);
        }
    }
}

/// Polls all of them until the last is over, or until `expires`: then what still runs is dropped.
/// `first_pending` is told, once, if they do not end at once.
async fn run_all(calls: &mut [Call<'_>], expires: Option<Instant>, first_pending: impl FnOnce()) {
    let mut first_pending = Some(first_pending);
    let all = poll_fn(|cx| {
        let mut pending = false;
        for call in &mut *calls {
            pending |= call.poll(cx).is_pending();
        }
        if !pending {
            return Poll::Ready(());
        }
        if let Some(tell) = first_pending.take() {
            tell();
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

/// Calls one hook with the event.
pub(super) fn call_one<E: HookEvent>(
    hook: &Named<dyn Hook<E>>,
    event: E,
    expires: Option<Instant>,
    first_pending: impl FnOnce(),
) -> impl Future<Output = Option<HookError>> {
    let mut call = [Call::new(hook, event)];
    async move {
        run_all(&mut call, expires, first_pending).await;
        call[0].take_error()
    }
}

/// Calls every hook with the event, all at the same time, so that none of them holds up another. Resolves to the names
/// and the errors of those that failed.
///
/// No `async fn`: its future would hold the event twice over, and of these futures there may be many.
pub(super) fn call_all<E: HookEvent + Clone>(
    hooks: &Hooks<E>,
    event: E,
    expires: Option<Instant>,
    first_pending: impl FnOnce(),
) -> impl Future<Output = Vec<(String, HookError)>> {
    let mut calls = match hooks.as_slice() {
        // One hook is the usual case, and needs no list.
        [hook] => Calls::One([Call::new(hook, event)]),
        hooks => Calls::Many(hooks.iter().map(|hook| Call::new(hook, event.clone())).collect()),
    };
    async move {
        run_all(calls.as_mut(), expires, first_pending).await;
        let calls = calls.as_mut().iter_mut();
        calls.filter_map(|call| Some((call.name.to_owned(), call.take_error()?))).collect()
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
