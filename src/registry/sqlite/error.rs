//! What went wrong, inside: with the path in every text.

use std::{io, path::Path};

use rusqlite::ErrorCode;

use crate::registry::RegistryError;

/// As [`RegistryError`], for as many callers as there are in a group.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Unavailable(String),
    Invalid(String),
    /// Unusable, and what [`set_aside_damaged`](super::SqliteRegistryBuilder::set_aside_damaged) is for.
    Damaged(String),
    Fenced,
    DataLost,
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(text) => Self::unavailable(text),
            Failure::Invalid(text) | Failure::Damaged(text) => Self::invalid(text),
            Failure::Fenced => Self::Fenced,
            Failure::DataLost => Self::DataLost,
        }
    }
}

impl Failure {
    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Unavailable(format!("{}: {error}", path.display()))
    }

    /// An error in use.
    pub(super) fn in_use(path: &Path, error: &rusqlite::Error) -> Self {
        Self::Unavailable(format!("{}: {error}", path.display()))
    }

    /// An error at the start, when damage can be told from what passes.
    pub(super) fn at_start(path: &Path, error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::Damaged(format!(
                "{} is no SQLite database, or its first page is damaged ({error})",
                path.display()
            )),
            Some(ErrorCode::DatabaseCorrupt) => Self::damaged(path, error),
            _ => Self::in_use(path, error),
        }
    }

    pub(super) fn damaged(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Damaged(format!("{} is damaged: {why}", path.display()))
    }
}
