//! Exactly one `session_end` for every session of a Tower gateway, and a shutdown that never takes longer than you
//! allowed.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
mod dispatch;
#[cfg(feature = "axum")]
mod extract;
mod guard;
mod hook;
mod http;
mod lifecycle;
mod protocol;
mod report;
mod session;
mod shutdown;
mod stop;
mod sync;
mod tracker;
mod upkeep;

#[cfg(feature = "axum")]
pub use self::extract::{MissingSessionLayer, SessionIdRejection};
pub use self::{
    builder::{ActiveSessionsBuilder, BuildError},
    dispatch::{HookError, HookFailure},
    guard::{Closing, SessionGuard},
    hook::{BoxError, HookOutput, SessionHook},
    http::{ResponseFuture, SessionBody, SessionLayer, SessionService},
    lifecycle::{ActiveSessions, Noted},
    protocol::{HeaderProtocol, RequestInfo, SessionProtocol, SessionSignal},
    report::{ConnectionReport, DrainReport, EndStage, ShutdownReport, UnfinishedEnd},
    session::{
        EndReason, EventId, InvalidSessionId, Phase, Session, SessionContext, SessionEnd, SessionId, SessionStart,
    },
    shutdown::{Finished, Shutdown, signal},
};
