//! The internal error type, and which errors of the server are transient.

use sqlx::error::DatabaseError;

use super::super::RegistryError;

/// Why a transaction was not committed.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(sqlx::Error),
    /// The lease is gone. A new one has to be taken.
    Lost(LeaseLoss),
    /// The transaction hook has ended the transaction that it was given.
    HookClosedTransaction,
    Conflict,
    Unavailable(String),
    Invalid(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseLoss {
    Fenced,
    DataLost,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Failure {
    /// As the caller gets it. The text names the schema.
    pub(super) fn into_registry_error(self, schema: &str) -> RegistryError {
        let named = |what: &dyn std::fmt::Display| format!("PostgreSQL, schema {schema:?}: {what}");
        match self {
            Self::Lost(LeaseLoss::Fenced) => RegistryError::Fenced,
            Self::Lost(LeaseLoss::DataLost) => RegistryError::DataLost,
            Self::Conflict => RegistryError::Conflict,
            Self::HookClosedTransaction => {
                RegistryError::unavailable(named(&"the transaction hook has ended its transaction"))
            }
            Self::Unavailable(text) => RegistryError::unavailable(named(&text)),
            Self::Invalid(text) => RegistryError::invalid(named(&text)),
            Self::Sql(error) => match Kind::of(&error) {
                Kind::Conflict => RegistryError::Conflict,
                Kind::Invalid(hint) => RegistryError::invalid(named(&format!("{error}{hint}"))),
                Kind::ReadOnly => {
                    RegistryError::unavailable(named(&format!("{error}: the server is a replica, or has become one")))
                }
                Kind::Missing | Kind::Transient => RegistryError::unavailable(named(&error)),
            },
        }
    }

    /// As [`into_registry_error`](Self::into_registry_error), where this process uses the store for the first time: a replica
    /// is then a wrong address.
    pub(super) fn at_start(self) -> Self {
        match self {
            Self::Sql(error) if matches!(Kind::of(&error), Kind::ReadOnly) => {
                Self::Invalid(format!("{error}: use the address of the primary server"))
            }
            other => other,
        }
    }

    /// A table or the schema is missing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Sql(error) if matches!(Kind::of(error), Kind::Missing))
    }
}

enum Kind {
    Conflict,
    /// Waiting does not help. The text is a hint.
    Invalid(&'static str),
    ReadOnly,
    Missing,
    Transient,
}

impl Kind {
    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::of_database(&**error),
            sqlx::Error::Configuration(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::TypeNotFound { .. } => Self::Invalid(""),
            _ => Self::Transient,
        }
    }

    fn of_database(error: &dyn DatabaseError) -> Self {
        match error.code().as_deref().unwrap_or_default() {
            // A serialization failure, a deadlock, a lock that was not free in time.
            "40001" | "40P01" | "55P03" => Self::Conflict,
            "25006" => Self::ReadOnly,
            "42P01" | "3F000" => Self::Missing,
            "42501" => Self::Invalid(
                ": this user may not use the schema. Permit it to create the schema, or create the schema for it",
            ),
            // The database or the role does not exist, the password is wrong, a table has other columns, a name is not permitted.
            "3D000" | "28000" | "28P01" | "42703" | "42804" | "42939" | "42809" => Self::Invalid(""),
            _ => Self::Transient,
        }
    }
}
