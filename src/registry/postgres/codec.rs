//! Decodes and encodes the columns. A row that cannot be read must not block the others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Row, postgres::PgRow};

use super::{
    super::{EndRecord, Record},
    error::Failure,
};
use crate::session::{EndReason, Session, SessionId};

/// The columns that [`record`] expects, of the table `s`.
macro_rules! record_columns {
    () => {
        "s.id, s.generation, s.details::text AS details, s.started_at"
    };
}
/// The columns that [`ended`] expects, of the table `s`.
macro_rules! end_columns {
    () => {
        "s.id, s.generation, s.details::text AS details, s.started_at, s.requests, s.reason, s.next::text AS next, s.ended_at, \
         s.attempts"
    };
}
pub(super) use {end_columns, record_columns};

/// `None` if the id or the generation cannot be read.
pub(super) fn record(row: &PgRow) -> Result<Option<Record>, Failure> {
    let (id, generation): (&str, &str) = (row.try_get("id")?, row.try_get("generation")?);
    let (Ok(id), Ok(generation)) = (SessionId::with_max_len(id, usize::MAX), generation.parse()) else {
        return Ok(None);
    };
    let session = match serde_json::from_str::<Session>(row.try_get("details")?) {
        Ok(details) => Session { id, ..details },
        // A session can be ended without its details.
        Err(error) => {
            tracing::error!(
                name: "session-registry-details-lost",
                session = %id.redacted(),
                %generation,
                %error,
                "the recorded details of a session cannot be read; it continues without them",
            );
            Session::new(id)
        }
    };
    Ok(Some(Record::new(session, generation, from_ms(row.try_get("started_at")?))))
}

/// An end and its attempts. Without a recorded reason the session was lost at that time.
pub(super) fn ended(row: &PgRow, lost_at: i64) -> Result<Option<(Record, EndRecord, u32)>, Failure> {
    let Some(record) = record(row)? else { return Ok(None) };
    let requests = unsigned(row.try_get("requests")?);
    let attempts = row.try_get::<i64, _>("attempts")?.try_into().unwrap_or(u32::MAX);
    let end = match row.try_get::<Option<&str>, _>("reason")? {
        None => EndRecord::new(EndReason::Lost, None, from_ms(lost_at), requests),
        Some(reason) => {
            let reason = reason.parse().unwrap_or(EndReason::Unknown);
            // An unreadable successor must not prevent the end.
            let next: Option<&str> = row.try_get("next")?;
            let next = next.and_then(|next| serde_json::from_str(next).ok());
            let ended_at: Option<i64> = row.try_get("ended_at")?;
            EndRecord::new(reason, next, from_ms(ended_at.unwrap_or(lost_at)), requests)
        }
    };
    Ok(Some((record, end, attempts)))
}

pub(super) fn json(session: &Session) -> Result<String, Failure> {
    serde_json::to_string(session).map_err(|error| Failure::Invalid(error.to_string()))
}

/// PostgreSQL stores no NUL character.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// PostgreSQL's integers are signed.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    n.try_into().unwrap_or(0)
}

/// Milliseconds since 1970.
pub(super) fn to_ms(time: SystemTime) -> i64 {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    let far = Duration::from_millis(ms.unsigned_abs());
    let time = if ms < 0 { UNIX_EPOCH.checked_sub(far) } else { UNIX_EPOCH.checked_add(far) };
    time.unwrap_or(UNIX_EPOCH)
}
