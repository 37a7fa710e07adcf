//! A protocol that is user code: a panic in it is no panic of the request.

use std::sync::Once;

use http::{request, response};

use super::{RequestInfo, SessionProtocol, SessionUpdate};
use crate::{panic::catch, session::SessionId};

pub(super) struct CatchPanicProtocol<P> {
    protocol: P,
    warned: Once,
}

impl<P> CatchPanicProtocol<P> {
    pub(super) const fn new(protocol: P) -> Self {
        Self { protocol, warned: Once::new() }
    }

    /// What the protocol says, or that it says nothing.
    fn call<T: Default>(&self, ask: impl FnOnce(&P) -> T) -> T {
        catch(|| ask(&self.protocol)).unwrap_or_else(|panic| {
            self.warned.call_once(|| {
                tracing::warn!(
                    name: "session-protocol-panicked",
                    message = panic.into_message(),
                    "a session protocol panicked; the exchange goes on as if nothing was said of sessions. \
                     This is said once",
                );
            });
            T::default()
        })
    }
}

impl<P: SessionProtocol> SessionProtocol for CatchPanicProtocol<P> {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.call(|protocol| protocol.request_id(request))
    }

    fn may_start(&self, request: &request::Parts, tracked: Option<&SessionId>) -> bool {
        self.call(|protocol| protocol.may_start(request, tracked))
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.call(|protocol| protocol.response(request, response))
    }
}
