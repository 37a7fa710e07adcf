//! Changes as keys and arguments of `apply.lua`, in batches that do not block the server for long.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    super::{Change, EndRecord, Record, RegistryError},
    keys::Keys,
    scripts::ScriptArgs,
};
use crate::session::{GenerationId, Session, SessionId};

/// 500 changes block a server for about 9 ms, 2,000 for 40 ms.
const BATCH: usize = 256;

/// About this many bytes of ids and details go into one batch. A single change may have more.
const BATCH_BYTES: usize = 512 * 1024;

/// Keys and arguments of up to [`BATCH`] changes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) call: ScriptArgs,
    pub(super) len: usize,
    bytes: usize,
}

pub(super) fn batches(changes: &[Change], keys: &Keys) -> Result<Vec<Batch>, RegistryError> {
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
        batch.push(change, keys)?;
        batches.push(batch);
    }
    Ok(batches)
}

impl Batch {
    fn push(&mut self, change: &Change, keys: &Keys) -> Result<(), RegistryError> {
        self.len += 1;
        match change {
            Change::Hold(Record { session, generation, started_at }) => {
                self.key(keys.session(&session.id));
                self.key(keys.ending(*generation));
                self.args([
                    "h".to_owned(),
                    generation.to_string(),
                    session.id.to_string(),
                    json(session)?,
                    millis(*started_at),
                ]);
            }
            Change::Update(Record { session, generation, .. }) => {
                self.key(keys.session(&session.id));
                self.args(["u".to_owned(), generation.to_string(), json(session)?]);
            }
            Change::Release { id, generation, end } => self.end("r", id, *generation, end, keys)?,
            Change::End { id, generation, end } => self.end("e", id, *generation, end, keys)?,
            Change::Delivered { generation } => {
                self.key(keys.ending(*generation));
                self.args(["d".to_owned(), generation.to_string()]);
            }
            Change::Keep { id, generation } => self.silent("k", id, *generation, keys),
            Change::Forget { id, generation } => self.silent("f", id, *generation, keys),
        }
        Ok(())
    }

    fn end(
        &mut self,
        letter: &str,
        id: &SessionId,
        generation: GenerationId,
        end: &EndRecord,
        keys: &Keys,
    ) -> Result<(), RegistryError> {
        let EndRecord { reason, next, ended_at, requests } = end;
        self.key(keys.session(id));
        self.key(keys.ending(generation));
        self.args([
            letter.to_owned(),
            generation.to_string(),
            id.to_string(),
            reason.as_str().to_owned(),
            next.as_ref().map(json).transpose()?.unwrap_or_default(),
            millis(*ended_at),
            requests.to_string(),
        ]);
        Ok(())
    }

    fn silent(&mut self, letter: &str, id: &SessionId, generation: GenerationId, keys: &Keys) {
        self.key(keys.session(id));
        self.args([letter.to_owned(), generation.to_string(), id.to_string()]);
    }

    fn key(&mut self, key: String) {
        self.bytes += key.len();
        self.call.keys.push(key);
    }

    fn args<const N: usize>(&mut self, args: [String; N]) {
        self.bytes += args.iter().map(String::len).sum::<usize>();
        self.call.args.extend(args);
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
