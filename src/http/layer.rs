//! [`SessionLayer`].

use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{SessionService, context::Extractors};
use crate::{
    handle::ActiveSessions,
    housekeeper::Housekeeper,
    protocol::{HeaderProtocol, ProtocolKind, SessionProtocol},
    session::{Phase, SessionId},
    shutdown::Shutdown,
    tracker::{Activity, ClaimNumber, Generation, Tracker},
};

impl ActiveSessions {
    /// The layer for a host that names its sessions in headers; see [`HeaderProtocol`].
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let app: axum::Router = axum::Router::new().layer(sessions.layer());
    /// ```
    #[must_use]
    pub fn layer(&self) -> SessionLayer {
        SessionLayer::new(self)
    }

    /// The layer for a host with another protocol; see [`SessionProtocol`].
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer_with(HeaderProtocol::new().max_id_len(64));
    /// let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    #[must_use]
    pub fn layer_with(&self, protocol: impl SessionProtocol) -> SessionLayer {
        SessionLayer::with_protocol(self, protocol)
    }
}

/// Wraps a host in a [`SessionService`]; made by [`ActiveSessions::layer`] or [`SessionLayer::new`].
///
/// It is transparent: status, headers, body, trailers and readiness are the host's own. The exceptions: control headers
/// that a protocol strips, and in a shutdown `connection: close` in HTTP/1 responses
/// ([`close_connections`](crate::ActiveSessionsBuilder::close_connections)) and the ends of streams
/// ([`end_streams`](crate::ActiveSessionsBuilder::end_streams)).
///
/// Put it outside the services that set session headers, and inside those that must not see them. A layer that
/// compresses belongs outside of this one: inside of it, it would not see that this layer ends a stream, and the client
/// would get a torn file. With axum, that is a `.layer` after this one:
/// `.layer(sessions.layer()).layer(CompressionLayer::new())`.
///
/// ```
/// use tower_session_end::{ActiveSessions, SessionLayer};
///
/// let sessions = ActiveSessions::builder().build()?;
/// let app: axum::Router = axum::Router::new().layer(SessionLayer::new(&sessions));
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone)]
pub struct SessionLayer {
    shared: Arc<Shared>,
    /// `None` if they are switched off.
    extractors: Option<Extractors>,
}

/// Shared by all clones of a layer and its services.
pub(super) struct Shared {
    pub(super) sessions: ActiveSessions,
    /// Parts of `sessions`; save a pointer hop on the hot path.
    tracker: Arc<Tracker>,
    housekeeper: Arc<Housekeeper>,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) protocol: ProtocolKind,
}

impl Shared {
    #[inline]
    pub(super) fn claim_number(&self) -> ClaimNumber {
        self.tracker.claim_number()
    }

    #[inline]
    pub(super) fn end_activity(&self, generation: &Arc<Generation>, activity: Activity) {
        self.housekeeper.end_activity(generation, activity);
    }

    /// The active generation of an id. Begins an [`Activity::Work`] of it.
    pub(super) fn begin_request(&self, id: &[u8]) -> Option<Arc<Generation>> {
        self.tracker.begin_request(id)
    }

    pub(super) fn is_tracked(&self, id: &SessionId) -> bool {
        self.tracker.find(id.as_bytes()).is_some()
    }

    #[inline]
    pub(super) fn phase(&self) -> Phase {
        self.tracker.phase()
    }

    #[inline]
    pub(super) fn is_closing(&self) -> bool {
        self.phase() >= Phase::Closing
    }

    /// Whether requests that may start a session are refused in this phase.
    #[inline]
    pub(super) fn refuses(&self) -> bool {
        self.sessions.inner.refuse_new_sessions && self.is_closing()
    }
}

impl SessionLayer {
    /// The layer for a host that names its sessions in headers; see [`HeaderProtocol`]. The same as
    /// [`ActiveSessions::layer`].
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, SessionLayer};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let app: axum::Router = axum::Router::new().layer(SessionLayer::new(&sessions));
    /// ```
    #[must_use]
    pub fn new(sessions: &ActiveSessions) -> Self {
        Self::with_protocol(sessions, HeaderProtocol::new())
    }

    /// The layer for a host with another protocol; see [`SessionProtocol`]. The same as
    /// [`ActiveSessions::layer_with`].
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, McpProtocol, SessionLayer};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = SessionLayer::with_protocol(&sessions, McpProtocol::new());
    /// ```
    #[must_use]
    pub fn with_protocol(sessions: &ActiveSessions, protocol: impl SessionProtocol) -> Self {
        let shared = Shared {
            sessions: sessions.clone(),
            tracker: Arc::clone(&sessions.inner.tracker),
            housekeeper: Arc::clone(&sessions.inner.housekeeper),
            shutdown: Arc::clone(&sessions.inner.shutdown),
            protocol: ProtocolKind::new(protocol),
        };
        Self {
            shared: Arc::new(shared),
            extractors: cfg!(feature = "axum").then_some(Extractors { in_other_tasks: false }),
        }
    }

    /// Makes the axum extractors work in other tasks than the layer's too.
    ///
    /// By default they work while the layer's future is polled: in handlers and middleware, also after an `await`, but not
    /// in a task that is spawned with the request, as by `tokio::spawn(next.run(request))`, and not after the handler has
    /// returned. There they are rejected with [`MissingSessionLayer`](crate::MissingSessionLayer). What they have returned
    /// before may be moved anywhere.
    ///
    /// With this, what they need is in the extensions of each request, which takes an allocation. Without the feature
    /// `axum` there are no extractors.
    ///
    /// ```
    /// use axum::{Router, extract::Request, middleware::{Next, from_fn}, response::{IntoResponse, Response}};
    /// use http::StatusCode;
    ///
    /// /// The handler runs to its end, also if the client leaves.
    /// async fn run_to_the_end(request: Request, next: Next) -> Response {
    ///     let handler = tokio::spawn(next.run(request));
    ///     handler.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    /// }
    ///
    /// # let sessions = tower_session_end::ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer().extractors_in_other_tasks();
    /// let app: Router = Router::new().layer(from_fn(run_to_the_end)).layer(layer);
    /// ```
    #[must_use]
    pub fn extractors_in_other_tasks(self) -> Self {
        let extractors = cfg!(feature = "axum").then_some(Extractors { in_other_tasks: true });
        Self { extractors, ..self }
    }

    /// Switches the axum extractors off. Handlers that use them then fail with
    /// [`MissingSessionLayer`](crate::MissingSessionLayer). Without the feature `axum` there are none.
    ///
    /// It also switches off the check for a second layer of the same handle around the same host: a request that two
    /// layers see in the same session is counted once with the extractors, and twice without them.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer().without_extractors();
    /// ```
    #[must_use]
    pub fn without_extractors(self) -> Self {
        Self { extractors: None, ..self }
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
