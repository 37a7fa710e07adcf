//! The internal error type. Each text contains the path.

use std::{io, path::Path};

use rusqlite::ErrorCode;

use crate::registry::RegistryError;

/// A [`RegistryError`] that can be cloned, for the callers that share a transaction.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Unavailable(String),
    Invalid(String),
    /// Invalid, but [`set_aside_damaged`](super::SqliteRegistryBuilder::set_aside_damaged) applies.
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

    /// An error after the start: always unavailable.
    pub(super) fn in_use(path: &Path, error: &rusqlite::Error) -> Self {
        Self::Unavailable(format!("{}: {error}", path.display()))
    }

    /// An error at the start: damage, or else unavailable.
    pub(super) fn at_start(path: &Path, error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::Damaged(format!(
                "{} is not a SQLite database, or its first page is damaged ({error})",
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
