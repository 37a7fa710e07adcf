//! How our keys are called.

use crate::session::{GenerationId, SessionId};

/// The keys of one deployment. The prefix stands in braces: all of them are in one slot of a cluster, where one script
/// can change them together.
#[derive(Debug)]
pub(super) struct Keys {
    root: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { root: format!("{{{prefix}}}:") }
    }

    /// How each of them begins.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// What every script gets, in the order that `common.lua` expects.
    pub(super) fn common(&self, rid: &str) -> [String; 9] {
        let Self { root } = self;
        [
            format!("{root}incarnation"),
            format!("{root}lease"),
            format!("{root}reaping"),
            format!("{root}fenced"),
            format!("{root}grace"),
            format!("{root}seq"),
            format!("{root}held:{rid}"),
            format!("{root}claimed:{rid}"),
            format!("{root}told:{rid}"),
        ]
    }

    /// An active session.
    pub(super) fn session(&self, id: &SessionId) -> String {
        format!("{}session:{}", self.root, id.as_str())
    }

    /// An end that is claimed and not done.
    pub(super) fn ending(&self, generation: GenerationId) -> String {
        format!("{}end:{generation}", self.root)
    }
}
