//! A gRPC service that keeps sessions, as tonic serves it: the host of this example, which knows of our crate only what
//! it likes to. `src/main.rs` puts the layer around it and drives it.
//!
//! The ids are in metadata, which are HTTP headers: the layer needs nothing but
//! [`HeaderProtocol`](tower_session_end::HeaderProtocol).

mod host;

/// What the guide of our crate says about gRPC. Its code is tried here: there it would need tonic.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/grpc.md")]
mod guide {}

/// What `build.rs` makes: the trait of the service, its server and its client.
mod generated {
    #![allow(clippy::all, clippy::use_self, clippy::must_use_candidate, clippy::uninlined_format_args)]
    #![allow(missing_debug_implementations, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/agent.v1.Agent.rs"));
}

pub use self::{
    generated::{
        agent_client::AgentClient,
        agent_server::{Agent, AgentServer},
    },
    host::{SESSION_COMPACTED_FROM, SESSION_END, SESSION_ID, SmallAgent},
};

/// Nothing: what is to be said is in the metadata.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// Opens a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OpenRequest {
    /// The conversation that it is for.
    #[prost(string, tag = "1")]
    pub key: String,
}

/// Says something in a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ChatRequest {
    /// What is said.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ChatReply {
    /// The answer.
    #[prost(string, tag = "1")]
    pub reply: String,
    /// How often the session was spoken to.
    #[prost(uint64, tag = "2")]
    pub message_count: u64,
}

/// A sign of life from a session that is watched.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Tick {
    /// Counts from 1.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}
