//! Parses the answers of the scripts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::Value;

use super::super::{Applied, Change, EndRecord, Orphan, Record, RegistryError};
use crate::session::{EndReason, GenerationId, Session, SessionId};

/// The outcome of a call.
#[derive(Debug)]
pub(super) enum Reply {
    /// It was applied, with this answer.
    Done(Vec<Value>),
    /// The lease is missing, or the store is not the known one.
    Lost,
    /// From `enter` only: other holders have recovered this name.
    Fenced,
    /// This call, or a later one of this holder, was applied before.
    Stale,
    /// The server cannot be used; the text says why.
    Invalid(String),
}

pub(super) fn reply(value: Value) -> Result<Reply, RegistryError> {
    let Value::Array(mut values) = value else {
        return Err(unexpected("something else than a list"));
    };
    if values.is_empty() {
        return Err(unexpected("an empty list"));
    }
    match text(values.remove(0))?.as_str() {
        "OK" => Ok(Reply::Done(values)),
        "FENCED" => Ok(Reply::Fenced),
        "LOST" => Ok(Reply::Lost),
        "STALE" => Ok(Reply::Stale),
        "INVALID" => Ok(Reply::Invalid(values.into_iter().next().map(text).transpose()?.unwrap_or_default())),
        other => Err(unexpected(other)),
    }
}

fn unexpected(what: &str) -> RegistryError {
    RegistryError::invalid(format!("the server is not Redis, or runs other scripts: it answered {what}"))
}

pub(super) fn text(value: Value) -> Result<String, RegistryError> {
    match value {
        Value::BulkString(bytes) => {
            String::from_utf8(bytes).map_err(|error| RegistryError::invalid(format!("an answer is not text: {error}")))
        }
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text),
        Value::Okay => Ok("OK".to_owned()),
        Value::Int(number) => Ok(number.to_string()),
        Value::Nil => Ok(String::new()),
        _ => Err(unexpected("something that is not text")),
    }
}

fn texts(value: Value) -> Result<Vec<String>, RegistryError> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        _ => Err(unexpected("something that is not a list")),
    }
}

/// Parses the answer to this change.
pub(super) fn applied(value: Value, change: &Change) -> Result<Applied, RegistryError> {
    let texts = texts(value)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    match (&texts[..], change) {
        (["B"], _) => Ok(Applied::Created),
        (&["J", generation, session, started], Change::Hold(own)) => {
            let generation = generation.parse().map_err(RegistryError::invalid)?;
            Ok(Applied::Joined(Record::new(details(session, &own.session, generation), generation, time(started))))
        }
        (&["Y", requests], _) => Ok(Applied::Owned { requests: requests.parse().unwrap_or_default() }),
        (["O"], _) => Ok(Applied::HeldElsewhere),
        (["G"], _) => Ok(Applied::NotFound),
        (["D"], _) => Ok(Applied::Ok),
        _ => Err(unexpected("with an unknown letter")),
    }
}

/// The end of a session is pending even if its details cannot be read.
fn details(json: &str, instead: &Session, generation: GenerationId) -> Session {
    serde_json::from_str(json).unwrap_or_else(|error| {
        tracing::warn!(
            name: "session-registry-details-lost",
            %error,
            %generation,
            "the details of a session in the registry cannot be read; its end is delivered without them"
        );
        instead.clone()
    })
}

/// Parses a recovered end. `None` if its generation or session id cannot be read.
pub(super) fn orphan(value: Value) -> Result<Option<Orphan>, RegistryError> {
    let texts = texts(value)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let [generation, id, session, started, reason, next, ended, requests, attempts] = texts[..] else {
        return Err(unexpected("an end with other fields"));
    };
    let (Ok(generation), Ok(id)) = (generation.parse(), SessionId::with_max_len(id, usize::MAX)) else {
        tracing::warn!(
            name: "session-registry-unreadable",
            generation,
            "an end in the session registry cannot be read; it is not delivered and stays in the registry"
        );
        return Ok(None);
    };
    let session = details(session, &Session::new(id), generation);
    let reason: EndReason = reason.parse().unwrap_or(EndReason::Unknown);
    let end =
        EndRecord::new(reason, serde_json::from_str(next).ok(), time(ended), requests.parse().unwrap_or_default());
    let record = Record::new(session, generation, time(started));
    Ok(Some(Orphan::new(record, end, attempts.parse().unwrap_or(1))))
}

/// From milliseconds since 1970.
fn time(millis: &str) -> SystemTime {
    let (before, millis) = millis.strip_prefix('-').map_or((false, millis), |millis| (true, millis));
    let since = Duration::from_millis(millis.parse().unwrap_or_default());
    let time = if before { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    time.unwrap_or(UNIX_EPOCH)
}
