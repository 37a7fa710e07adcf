//! Which errors of a server pass, and which do not.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::RegistryError;

/// What a plain `ERR` says when it is for good: no scripts there, or not for this user.
const PERMANENT_ERRORS: [&str; 6] = [
    "unknown command",
    "can't run this command",
    "can't access at least one",
    "ACL failure",
    "no permissions",
    // From within a script of Redis 6.
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
        // The prefix is somebody else's; or the password is wrong.
        ErrorKind::Extension => matches!(error.code(), Some("WRONGTYPE" | "WRONGPASS")),
        _ => false,
    }
}

/// Whoever has not given it yet may send short commands only, and hears of those alone what is missing.
fn wants_a_password(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH") || error.detail().is_some_and(|detail| detail.contains("unauthenticated"))
}
