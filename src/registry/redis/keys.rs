//! The names of the keys.

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

    /// The common beginning.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// The keys of every script, in the order that `common.lua` expects.
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

    /// What stood in the place of the incarnation in an older layout.
    pub(super) fn old_incarnation(&self) -> String {
        format!("{}inc", self.root)
    }

    /// An active session.
    pub(super) fn session(&self, id: &SessionId) -> String {
        format!("{}session:{}", self.root, id.as_str())
    }

    /// An end that is claimed and not delivered.
    pub(super) fn ending(&self, generation: GenerationId) -> String {
        format!("{}end:{generation}", self.root)
    }
}
