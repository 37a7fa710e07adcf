//! Parses the answers of the scripts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::Value;

use super::{
    super::{Applied, Change, DeadLetter, EndRecord, Heartbeat, Notice, Orphan, Record, RegistryError},
    recovery::Recovery,
};
use crate::session::{EndReason, GenerationId, Session, SessionId};

/// The outcome of a script.
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
    /// The call came after its deadline, and nothing was changed.
    Late,
    /// The server cannot be used; the text says why.
    Invalid(String),
}

/// The outcome, and the time of the server in milliseconds, if the answer has it.
pub(super) fn reply(value: Value) -> Result<(Reply, Option<u64>), RegistryError> {
    let Value::Array(mut values) = value else {
        return Err(unexpected("something else than a list"));
    };
    if values.is_empty() {
        return Err(unexpected("an empty list"));
    }
    let first = text(values.remove(0))?;
    let (word, time) = first.split_once(' ').map_or((&*first, None), |(word, time)| (word, time.parse().ok()));
    let reply = match (word, time) {
        ("OK", Some(_)) => Reply::Done(values),
        ("LATE", Some(_)) => Reply::Late,
        ("FENCED", None) => Reply::Fenced,
        ("LOST", None) => Reply::Lost,
        ("STALE", None) => Reply::Stale,
        ("INVALID", None) => Reply::Invalid(values.into_iter().next().map(text).transpose()?.unwrap_or_default()),
        _ => return Err(unexpected(&first)),
    };
    Ok((reply, time))
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
pub(super) fn applied(value: Value, change: &Change, recovery: &Recovery) -> Result<Applied, RegistryError> {
    let texts = texts(value)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    match (&texts[..], change) {
        (["CREATED"], _) => Ok(Applied::Created),
        (&["JOINED", generation, session, started_at], Change::Hold { record: own, .. }) => {
            let generation = generation.parse().map_err(RegistryError::invalid)?;
            let session = details(session, &own.session, generation);
            Ok(Applied::Joined(Record::new(session, generation, time(started_at))))
        }
        (["OWNED", requests], _) => Ok(Applied::Owned { requests: requests.parse().unwrap_or_default() }),
        (["HELD_ELSEWHERE"], _) => Ok(Applied::HeldElsewhere),
        (["NOT_FOUND"], _) => Ok(Applied::NotFound),
        (["GONE"], _) => Ok(Applied::Gone),
        (["OK"], _) => Ok(Applied::Ok),
        (&["RECOVERED", requests, holder, kind], _) => Ok(recovered(requests, holder, kind, change, recovery)),
        _ => Err(unexpected("with an unknown word")),
    }
}

/// The answer for an end that belongs to a holder that this one has adopted. It is claimed once it was returned as an orphan.
fn recovered(requests: &str, holder: &str, kind: &str, change: &Change, recovery: &Recovery) -> Applied {
    let (generation, claimed) = match change {
        Change::Hold { record, .. } => (record.generation, Applied::Created),
        Change::Release { generation, .. } | Change::End { generation, .. } => {
            (*generation, Applied::Owned { requests: requests.parse().unwrap_or_default() })
        }
        _ => return Applied::Gone,
    };
    if recovery.has_read(holder, kind, &generation.to_string()) { claimed } else { Applied::Gone }
}

/// Parses the answer to a heartbeat.
pub(super) fn heartbeat(values: Vec<Value>) -> Result<Heartbeat, RegistryError> {
    let texts = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let [has_more, dead_letters, notices @ ..] = &texts[..] else {
        return Err(unexpected("a heartbeat with other fields"));
    };
    let mut heartbeat = Heartbeat::new(Vec::new(), has_more == "1", dead_letters.parse().unwrap_or_default());
    for notice in notices.chunks_exact(2) {
        let (member, age) = (&notice[0], &notice[1]);
        let parsed = member.split_once(' ').and_then(|(generation, id)| {
            Some((SessionId::with_max_len(id, usize::MAX).ok()?, generation.parse().ok()?))
        });
        if let Some((id, generation)) = parsed {
            let age = Duration::from_millis(age.parse().unwrap_or_default());
            heartbeat.notices.push(Notice::new(id, generation, age));
        }
    }
    Ok(heartbeat)
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

/// Parses the answer to a redelivery: the time on the server, and the number of letters.
pub(super) fn redelivered(values: Vec<Value>) -> Result<(String, u64), RegistryError> {
    let texts = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let [time, count] = &texts[..] else {
        return Err(unexpected("a redelivery with other fields"));
    };
    Ok((time.clone(), count.parse().unwrap_or_default()))
}

/// Parses a recovered end. `None` if its generation or session id cannot be read.
pub(super) fn orphan(value: Value) -> Result<Option<Orphan>, RegistryError> {
    let texts = texts(value)?;
    Ok(ended(&texts)?.map(|(record, end, attempts)| Orphan::new(record, end, attempts)))
}

/// Parses a dead letter. `None` if its generation or session id cannot be read.
pub(super) fn dead_letter(value: Value) -> Result<Option<DeadLetter>, RegistryError> {
    let mut texts = texts(value)?;
    let error = texts.pop().unwrap_or_default();
    Ok(ended(&texts)?.map(|(record, end, attempts)| DeadLetter::new(record, end, attempts, error)))
}

fn ended(texts: &[String]) -> Result<Option<(Record, EndRecord, u32)>, RegistryError> {
    let [generation, id, session, started_at, reason, next, ended_at, requests, attempts] = texts else {
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
        EndRecord::new(reason, serde_json::from_str(next).ok(), time(ended_at), requests.parse().unwrap_or_default());
    Ok(Some((Record::new(session, generation, time(started_at)), end, attempts.parse().unwrap_or_default())))
}

/// From milliseconds since 1970.
fn time(millis: &str) -> SystemTime {
    let (before, millis) = millis.strip_prefix('-').map_or((false, millis), |millis| (true, millis));
    let since = Duration::from_millis(millis.parse().unwrap_or_default());
    let time = if before { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    time.unwrap_or(UNIX_EPOCH)
}
