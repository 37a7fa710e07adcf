//! Classifies Redis errors as transient or permanent.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::RegistryError;

/// Texts of a permanent plain `ERR`: the server has no scripts, or this user may not run them.
const PERMANENT_ERRORS: [&str; 6] = [
    "unknown command",
    "can't run this command",
    "can't access at least one",
    "ACL failure",
    "no permissions",
    // Redis 6 reports it as a plain `ERR` from within a script.
    "WRONGTYPE",
];

pub(super) fn from_redis(error: RedisError) -> RegistryError {
    if wants_a_password(&error) {
        return RegistryError::invalid(format!("the server wants a password: {error}"));
    }
    if is_permanent(&error) { RegistryError::invalid(error) } else { RegistryError::unavailable(error) }
}

fn is_permanent(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::RESP3NotSupported
        | ErrorKind::Parse
        | ErrorKind::Server(ServerErrorKind::CrossSlot | ServerErrorKind::NoPerm) => true,
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            error.detail().is_some_and(|detail| PERMANENT_ERRORS.iter().any(|text| detail.contains(text)))
        }
        // Another application uses the prefix; or the password is wrong.
        ErrorKind::Extension => matches!(error.code(), Some("WRONGTYPE" | "WRONGPASS")),
        _ => false,
    }
}

/// Before AUTH, Redis rejects long commands with a protocol error instead of NOAUTH.
fn wants_a_password(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH") || error.detail().is_some_and(|detail| detail.contains("unauthenticated"))
}
