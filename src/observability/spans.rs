//! The span around each call of a hook: it ties the events of a hook to a session.

use tracing::{Span, span::Entered};

use crate::session::{SessionEnd, SessionStart};

/// Free unless `DEBUG` is enabled. Boxed, because many calls may be in flight.
pub(crate) struct HookSpan(Option<Box<Span>>);

impl HookSpan {
    pub(crate) const NONE: Self = Self(None);

    pub(crate) fn new(hook: &str, event: &impl HookEvent) -> Self {
        let span = event.span(hook);
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_ref().map(|span| span.enter())
    }
}

/// The argument of a hook.
pub(crate) trait HookEvent {
    fn span(&self, hook: &str) -> Span;
}

impl HookEvent for SessionStart {
    fn span(&self, hook: &str) -> Span {
        let Self { session, generation, .. } = self;
        tracing::debug_span!("session-hook", kind = "start", hook, session = %session.id.redacted(), %generation)
    }
}

impl HookEvent for SessionEnd {
    fn span(&self, hook: &str) -> Span {
        let Self { session, generation, reason, .. } = self;
        tracing::debug_span!("session-hook", kind = "end", hook, session = %session.id.redacted(), %generation, %reason)
    }
}

impl HookEvent for Vec<SessionEnd> {
    fn span(&self, hook: &str) -> Span {
        tracing::debug_span!("session-hook", kind = "batch", hook, sessions = self.len())
    }
}
