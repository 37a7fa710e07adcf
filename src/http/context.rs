//! [`RequestContext`]: where the extractors find the layer and the id of their request.
//!
//! It is in a thread-local while the layer polls the host, as with `tokio::task_local!`. An entry in the extensions of
//! each request would take an allocation and 460 instructions, and few handlers ask for it.

use std::{cell::Cell, sync::Arc};

#[cfg(feature = "axum")]
use http::request::Parts;

use super::{exchange::Exchange, layer::Shared};
#[cfg(feature = "axum")]
use crate::handle::ActiveSessions;
use crate::{protocol::RequestInfo, session::SessionId, tracker::Generation};

thread_local! {
    /// The context of the innermost layer that is polling its host.
    static CURRENT: Cell<Option<RequestContext>> = const { Cell::new(None) };
}

/// What the extractors return for one request.
#[derive(Clone)]
pub(super) struct RequestContext {
    shared: Arc<Shared>,
    /// The generation that the request was counted in.
    generation: Option<Arc<Generation>>,
    /// The id of the request, if that is not active.
    #[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "only the extractors read it"))]
    untracked: Option<Arc<SessionId>>,
    /// The host has been polled: whether a layer outside of this one has counted the request is known.
    is_polled: bool,
}

/// The setting of a layer with extractors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extractors {
    /// They work in other tasks too: the context is also in the extensions of the request.
    pub(super) in_other_tasks: bool,
}

impl RequestContext {
    /// `info` is needed for an id that is not active.
    #[inline]
    pub(super) fn new(exchange: &Exchange, info: Option<&RequestInfo>) -> Self {
        Self {
            shared: Arc::clone(exchange.shared()),
            generation: exchange.generation().cloned(),
            untracked: info.and_then(untracked_id),
            is_polled: false,
        }
    }

    /// Calls `host` with the context in the thread-local. Contexts of nested layers are put back in their order, also by a
    /// panic.
    #[inline]
    pub(super) fn enter<T>(slot: &mut Option<Self>, host: impl FnOnce() -> T) -> T {
        if slot.is_none() {
            return host();
        }
        // The thread-local is gone in destructors at the end of a thread.
        let Ok(outer) = CURRENT.try_with(Cell::take) else { return host() };
        let entered = Entered { outer, slot };
        if let (Some(outer), Some(context)) = (&entered.outer, entered.slot.as_mut()) {
            context.count_once(outer);
        }
        CURRENT.set(entered.slot.take());
        host()
    }

    /// The context of the request with this head.
    #[cfg(feature = "axum")]
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        if let Some(context) = parts.extensions.get::<Self>() {
            return Some(context.clone());
        }
        CURRENT
            .try_with(|current| {
                let context = current.take();
                current.set(context.clone());
                context
            })
            .ok()
            .flatten()
    }

    #[cfg(feature = "axum")]
    pub(super) fn sessions(&self) -> &ActiveSessions {
        &self.shared.sessions
    }

    #[cfg(feature = "axum")]
    pub(super) fn id(&self) -> Option<&SessionId> {
        self.generation.as_ref().map(|generation| &generation.id).or(self.untracked.as_deref())
    }

    /// If a layer of the same handle outside of this one has counted the request in the same generation, it counts once.
    #[cold]
    fn count_once(&mut self, outer: &Self) {
        let is_first_poll = !std::mem::replace(&mut self.is_polled, true);
        let Some(generation) = self.generation.as_ref().filter(|_| is_first_poll) else { return };
        let (sessions, others) = (&self.shared.sessions, &outer.shared.sessions);
        if Arc::ptr_eq(&sessions.inner, &others.inner)
            && outer.generation.as_ref().is_some_and(|counted| Arc::ptr_eq(counted, generation))
        {
            generation.uncount_request();
            sessions.inner.nested_layers.call_once(|| {
                tracing::warn!(
                    name: "session-layers-nested",
                    "two session layers of one handle saw a request in the same session, which is counted once; remove \
                     one of the layers",
                );
            });
        }
    }
}

/// While the host is polled. Its drop puts the contexts back.
struct Entered<'a> {
    outer: Option<RequestContext>,
    slot: &'a mut Option<RequestContext>,
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        let inner = CURRENT.replace(self.outer.take());
        // `None` if a panic came before the context was put there.
        if inner.is_some() {
            *self.slot = inner;
        }
    }
}

#[cold]
fn untracked_id(info: &RequestInfo) -> Option<Arc<SessionId>> {
    info.id().filter(|_| !info.is_tracked()).cloned().map(Arc::new)
}
