//! Changes as arguments of `apply.lua`, in batches that do not block the server for long.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::{Change, EndRecord, HoldMode, Record, RegistryError};
use crate::session::{GenerationId, Session, SessionId};

/// 256 changes block a server for about 6 ms.
const BATCH: usize = 256;

/// About this many bytes of ids and details go into one batch. A single change may have more.
const BATCH_BYTES: usize = 512 * 1024;

/// The arguments of up to [`BATCH`] changes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) args: Vec<String>,
    pub(super) len: usize,
    bytes: usize,
}

pub(super) fn batches(changes: &[Change]) -> Result<Vec<Batch>, RegistryError> {
    let mut batches: Vec<Batch> = Vec::with_capacity(changes.len().div_ceil(BATCH));
    for change in changes {
        let mut batch = match batches.pop() {
            Some(last) if last.len < BATCH && last.bytes < BATCH_BYTES => last,
            Some(full) => {
                batches.push(full);
                Batch::default()
            }
            None => Batch::default(),
        };
        batch.push(change)?;
        batches.push(batch);
    }
    Ok(batches)
}

impl Batch {
    /// Adds the name of the change and its fields, in the order of `apply.lua`.
    fn push(&mut self, change: &Change) -> Result<(), RegistryError> {
        self.len += 1;
        match change {
            Change::Hold { record: Record { session, generation, started_at }, mode } => self.args([
                "hold".to_owned(),
                generation.to_string(),
                session.id.to_string(),
                json(session)?,
                millis(*started_at),
                hold_mode(*mode).to_owned(),
            ]),
            Change::Update(Record { session, generation, .. }) => {
                self.args(["update".to_owned(), generation.to_string(), json(session)?]);
            }
            Change::Release { id, generation, end } => self.end("release", id, *generation, end)?,
            Change::End { id, generation, end } => self.end("end", id, *generation, end)?,
            Change::Attempted { generation, attempts } => {
                self.args(["attempted".to_owned(), generation.to_string(), attempts.to_string()]);
            }
            Change::Delivered { generation } => self.args(["delivered".to_owned(), generation.to_string()]),
            // Redis has no transaction hooks.
            Change::Commit { generation: _ } => self.args(["nothing".to_owned()]),
            Change::DeadLetter { generation, error } => {
                self.args(["dead_letter".to_owned(), generation.to_string(), error.clone()]);
            }
            Change::Keep { id, generation } => self.of_session("keep", id, *generation),
            Change::Forget { id, generation } => self.of_session("forget", id, *generation),
            Change::Acknowledge { id, generation } => self.of_session("acknowledge", id, *generation),
        }
        Ok(())
    }

    fn end(
        &mut self,
        name: &str,
        id: &SessionId,
        generation: GenerationId,
        end: &EndRecord,
    ) -> Result<(), RegistryError> {
        let EndRecord { reason, next, ended_at, requests } = end;
        self.args([
            name.to_owned(),
            generation.to_string(),
            id.to_string(),
            reason.as_str().to_owned(),
            next.as_ref().map(json).transpose()?.unwrap_or_default(),
            millis(*ended_at),
            requests.to_string(),
        ]);
        Ok(())
    }

    fn of_session(&mut self, name: &str, id: &SessionId, generation: GenerationId) {
        self.args([name.to_owned(), generation.to_string(), id.to_string()]);
    }

    fn args<const N: usize>(&mut self, args: [String; N]) {
        self.bytes += args.iter().map(String::len).sum::<usize>();
        self.args.extend(args);
    }
}

fn hold_mode(mode: HoldMode) -> &'static str {
    match mode {
        HoldMode::JoinOrCreate => "join_or_create",
        HoldMode::Join => "join",
        HoldMode::Create => "create",
    }
}

fn json(session: &Session) -> Result<String, RegistryError> {
    serde_json::to_string(session).map_err(RegistryError::invalid)
}

/// Milliseconds since 1970; negative before.
fn millis(time: SystemTime) -> String {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis().to_string(),
        Err(before) => format!("-{}", before.duration().as_millis()),
    }
}
