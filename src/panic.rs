//! Panics of user code, caught and turned into values.
//!
//! Hooks, protocols, registries, signals, `keep_if`, log subscribers and metrics recorders are user code. A panic in
//! one of them must not end a request or a shutdown.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

/// The message of a caught panic.
#[derive(Debug)]
pub(crate) struct Panic(String);

impl Panic {
    fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self(text.unwrap_or("(the panic payload is not text)").to_owned())
    }

    pub(crate) fn into_message(self) -> String {
        self.0
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs user code and catches its panic.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let panic = Panic::new(&*payload);
        // The payload is user code too: its drop may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        panic
    })
}

/// As [`catch`], with the payload: for a panic that goes on later.
pub(crate) fn catch_payload<T>(f: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(f))
}

/// A future of user code. Panics of its polls and its drop are caught. After a panic it is dropped and not polled
/// again.
pub(crate) struct CatchPanic<F>(Option<F>);

impl<F> CatchPanic<F> {
    pub(crate) const fn new(future: F) -> Self {
        Self(Some(future))
    }
}

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let output = match catch(|| Pin::new(future).poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        let finished = self.0.take();
        // A panic of the drop does not change the output.
        let _ = catch(|| drop(finished));
        Poll::Ready(output)
    }
}

impl<F> Drop for CatchPanic<F> {
    fn drop(&mut self) {
        let unfinished = self.0.take();
        let _ = catch(|| drop(unfinished));
    }
}
