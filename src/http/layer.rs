//! [`SessionLayer`].

use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::SessionService;
use crate::{
    handle::ActiveSessions,
    protocol::{HeaderProtocol, ProtocolKind, SessionProtocol},
    session::Phase,
    tracker::Tracker,
};

impl ActiveSessions {
    /// The layer for a host that speaks of its sessions in headers; see [`HeaderProtocol`].
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let app: axum::Router = axum::Router::new().layer(sessions.layer());
    /// ```
    #[must_use]
    pub fn layer(&self) -> SessionLayer {
        self.layer_with(HeaderProtocol::new())
    }

    /// The layer for a host with a protocol of its own; see [`SessionProtocol`].
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer_with(HeaderProtocol::new().max_id_len(64));
    /// let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    #[must_use]
    pub fn layer_with(&self, protocol: impl SessionProtocol) -> SessionLayer {
        SessionLayer {
            shared: Arc::new(Shared {
                sessions: self.clone(),
                tracker: Arc::clone(&self.inner.tracker),
                protocol: ProtocolKind::new(protocol),
            }),
            extractors: cfg!(feature = "axum"),
        }
    }
}

/// Wraps a host in a [`SessionService`]; made by [`ActiveSessions::layer`].
///
/// It is transparent: status, headers, body, trailers and readiness are the host's own. Put it outside of whatever
/// answers with session headers, and inside of whatever must not see them.
#[derive(Clone)]
pub struct SessionLayer {
    shared: Arc<Shared>,
    extractors: bool,
}

/// What every clone of a service shares.
pub(super) struct Shared {
    pub(super) sessions: ActiveSessions,
    /// The tracker of `sessions`; saves one pointer hop for each request.
    tracker: Arc<Tracker>,
    pub(super) protocol: ProtocolKind,
}

impl Shared {
    #[inline]
    pub(super) fn phase(&self) -> Phase {
        self.tracker.phase()
    }

    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        self.phase() >= Phase::Closing
    }

    /// Whether requests that may open a session are refused by now.
    #[inline]
    pub(super) fn refuses(&self) -> bool {
        self.sessions.inner.refuse_new_sessions && self.is_stopping()
    }
}

impl SessionLayer {
    /// Leaves the extractors out: they cost one insertion into each request's extensions.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer().without_extractors();
    /// ```
    #[must_use]
    pub fn without_extractors(self) -> Self {
        Self { extractors: false, ..self }
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        self.shared.sessions.inner.tasks.remember_runtime();
        SessionService::new(inner, Arc::clone(&self.shared), self.extractors)
    }
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer").field("sessions", &self.shared.sessions).finish_non_exhaustive()
    }
}
