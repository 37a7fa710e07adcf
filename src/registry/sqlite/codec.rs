//! Decodes rows. A row that cannot be read must not block the others.

use std::time::{Duration, SystemTime};

use rusqlite::{Error, Result, Row};

use crate::{
    registry::{EndRecord, Record},
    session::{EndReason, Session, SessionId},
};

/// The columns of a record, in the order that [`record`] expects.
pub(super) const RECORD: &str = "id, generation, details, started_at";

/// A decoded row.
#[derive(Debug)]
pub(super) enum Read<T> {
    Readable(T),
    /// The row has a value that does not decode. SQLite does not detect such damage.
    Unreadable,
}

impl<T> Read<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Read<U> {
        match self {
            Self::Readable(value) => Read::Readable(f(value)),
            Self::Unreadable => Read::Unreadable,
        }
    }
}

/// Errors of SQLite are returned; a value that does not decode makes the row unreadable.
fn read<T>(result: Result<T>) -> Result<Read<T>> {
    match result {
        Ok(value) => Ok(Read::Readable(value)),
        Err(error @ Error::SqliteFailure(..)) => Err(error),
        Err(_) => Ok(Read::Unreadable),
    }
}

/// Decodes the columns [`RECORD`].
pub(super) fn record(row: &Row<'_>) -> Result<Read<Record>> {
    let parse = || {
        let id: String = row.get(0)?;
        let id = SessionId::with_max_len(id, usize::MAX).map_err(invalid)?;
        let generation = row.get_ref(1)?.as_str()?.parse().map_err(invalid)?;
        // A session can be ended without its details.
        let details = row.get_ref(2)?.as_str().map(serde_json::from_str::<Session>);
        let session = match details {
            Ok(Ok(details)) => Session { id, ..details },
            _ => {
                tracing::error!(
                    name: "session-registry-details-lost",
                    session = %id.redacted(),
                    %generation,
                    "the recorded details of a session cannot be read; it continues without them",
                );
                Session::new(id)
            }
        };
        Ok(Record::new(session, generation, from_ms(row.get(3)?)))
    };
    read(parse())
}

/// The columns of an end, in the order that [`ended`] expects.
pub(super) const END: &str = "id, generation, details, started_at, requests, reason, next, ended_at, attempts";

/// Decodes the columns [`END`]. Without a recorded reason the session was lost, as of now.
pub(super) fn ended(row: &Row<'_>) -> Result<Read<(Record, EndRecord, u32)>> {
    let Read::Readable(record) = record(row)? else { return Ok(Read::Unreadable) };
    let parse = || {
        let requests = unsigned(row.get(4)?);
        let attempts = row.get::<_, i64>(8)?.try_into().unwrap_or(u32::MAX);
        let Some(reason) = row.get_ref(5)?.as_str_or_null()? else {
            return Ok((record, EndRecord::new(EndReason::Lost, None, now(), requests), attempts));
        };
        let reason = reason.parse().unwrap_or(EndReason::Unknown);
        // An unreadable successor must not prevent the end.
        let next = row.get_ref(6)?.as_str_or_null().ok().flatten().and_then(|next| serde_json::from_str(next).ok());
        let end = EndRecord::new(reason, next, from_ms(row.get(7)?), requests);
        Ok((record, end, attempts))
    };
    read(parse())
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn json(session: &Session) -> Result<String> {
    serde_json::to_string(session).map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))
}

/// SQLite's integers are signed.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    n.try_into().unwrap_or(0)
}

/// The current time, in whole milliseconds, as it will be decoded.
pub(super) fn now() -> SystemTime {
    from_ms(to_ms(SystemTime::now()))
}

/// Milliseconds since 1970.
pub(super) fn to_ms(time: SystemTime) -> i64 {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    let far = Duration::from_millis(ms.unsigned_abs());
    let time = if ms < 0 { SystemTime::UNIX_EPOCH.checked_sub(far) } else { SystemTime::UNIX_EPOCH.checked_add(far) };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
