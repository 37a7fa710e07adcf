//! Applies each [`Change`] within a transaction.

use rusqlite::{OptionalExtension, Result, Row, Transaction, params};

use super::codec::{self, Read, json, signed, to_ms};
use crate::{
    registry::{Applied, Change, EndRecord, Record},
    session::{GenerationId, SessionId},
};

/// The columns of an active record that a change needs.
struct Active {
    n: i64,
    requests: u64,
}

/// A transaction of the holder `me`.
pub(super) struct Changes<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) me: i64,
}

impl Changes<'_> {
    pub(super) fn apply(&self, change: &Change) -> Result<Applied> {
        match change {
            Change::Hold(record) => self.hold(record),
            Change::Update(record) => self.update(record),
            Change::Release { id, generation, end } => self.release(id, *generation, end),
            Change::End { id, generation, end } => self.end(id, *generation, end),
            Change::Delivered { generation } => {
                self.run("DELETE FROM ends WHERE generation = ?1 AND holder = ?2", (generation.to_string(), self.me))
            }
            Change::Keep { id, generation } => self.keep(id, *generation),
            Change::Forget { id, generation } => self
                .run("DELETE FROM sessions WHERE id = ?1 AND generation = ?2", (id.as_str(), generation.to_string())),
        }
    }

    fn hold(&self, record: &Record) -> Result<Applied> {
        let generation = record.generation.to_string();
        if self.claimed(record.generation)?.is_some() {
            // This call repeats an earlier one.
            return Ok(Applied::Created);
        }
        let (id, details) = (record.session.id.as_str(), json(&record.session)?);
        let Some((n, there)) = self.there(id)? else {
            let sql = "INSERT INTO sessions (id, generation, details, started_at, requests) VALUES (?1, ?2, ?3, ?4, 0)";
            self.run(sql, params![id, generation, details, to_ms(record.started_at)])?;
            self.add_holder(self.tx.last_insert_rowid())?;
            return Ok(Applied::Created);
        };
        self.add_holder(n)?;
        if there.generation != record.generation {
            return Ok(Applied::Joined(there));
        }
        self.run("UPDATE sessions SET details = ?2 WHERE number = ?1", params![n, details])?;
        Ok(Applied::Created)
    }

    /// The active record of the id.
    fn there(&self, id: &str) -> Result<Option<(i64, Record)>> {
        let sql = format!("SELECT {}, number FROM sessions WHERE id = ?1", codec::RECORD);
        let row = |row: &Row<'_>| Ok((row.get::<_, i64>(4)?, codec::record(row)?));
        let Some((n, read)) = self.tx.prepare_cached(&sql)?.query_row([id], row).optional()? else { return Ok(None) };
        if let Read::Readable(record) = read {
            return Ok(Some((n, record)));
        }
        tracing::error!(
            name: "session-registry-unreadable",
            "the record of a session cannot be read; it is replaced by a new one"
        );
        self.run("DELETE FROM sessions WHERE number = ?1", [n])?;
        Ok(None)
    }

    fn add_holder(&self, n: i64) -> Result<Applied> {
        let sql = "INSERT INTO holds (session, holder, released) VALUES (?1, ?2, 0)
             ON CONFLICT (session, holder) DO UPDATE SET released = 0";
        self.run(sql, (n, self.me))
    }

    fn update(&self, record: &Record) -> Result<Applied> {
        let sql = "UPDATE sessions SET details = ?1 WHERE id = ?2 AND generation = ?3
             AND EXISTS (SELECT 1 FROM holds WHERE session = number AND holder = ?4 AND NOT released)";
        let generation = record.generation.to_string();
        self.run(sql, params![json(&record.session)?, record.session.id.as_str(), generation, self.me])
    }

    fn release(&self, id: &SessionId, generation: GenerationId, end: &EndRecord) -> Result<Applied> {
        let Some(active) = self.active(id, generation)? else { return self.ended_before(generation) };
        let Some(released) = self.released(active.n)? else { return Ok(Applied::NotFound) };
        if released {
            // A repeat: the requests are already counted.
            return Ok(Applied::HeldElsewhere);
        }
        if !self.has_others(active.n)? {
            return self.end_active(&active, end);
        }
        self.run("UPDATE holds SET released = 1 WHERE session = ?1 AND holder = ?2", (active.n, self.me))?;
        let requests = active.requests.saturating_add(end.requests);
        self.run("UPDATE sessions SET requests = ?2 WHERE number = ?1", (active.n, signed(requests)))?;
        Ok(Applied::HeldElsewhere)
    }

    fn end(&self, id: &SessionId, generation: GenerationId, end: &EndRecord) -> Result<Applied> {
        match self.active(id, generation)? {
            Some(active) => self.end_active(&active, end),
            None => self.ended_before(generation),
        }
    }

    fn keep(&self, id: &SessionId, generation: GenerationId) -> Result<Applied> {
        let Some(active) = self.active(id, generation)? else { return Ok(Applied::Ok) };
        if self.released(active.n)? != Some(false) {
            return Ok(Applied::Ok);
        }
        if self.has_others(active.n)? {
            return self.run("DELETE FROM holds WHERE session = ?1 AND holder = ?2", (active.n, self.me));
        }
        self.run("DELETE FROM sessions WHERE number = ?1", [active.n])
    }

    fn active(&self, id: &SessionId, generation: GenerationId) -> Result<Option<Active>> {
        let sql = "SELECT number, requests FROM sessions WHERE id = ?1 AND generation = ?2";
        let active = |row: &Row<'_>| Ok(Active { n: row.get(0)?, requests: unsigned(row.get(1)?) });
        self.tx.prepare_cached(sql)?.query_row((id.as_str(), generation.to_string()), active).optional()
    }

    /// Whether this holder has released the session; `None` if it never held it.
    fn released(&self, n: i64) -> Result<Option<bool>> {
        let sql = "SELECT released FROM holds WHERE session = ?1 AND holder = ?2";
        self.tx.prepare_cached(sql)?.query_row((n, self.me), |row| row.get(0)).optional()
    }

    fn has_others(&self, n: i64) -> Result<bool> {
        let sql = "SELECT 1 FROM holds WHERE session = ?1 AND holder <> ?2 AND NOT released";
        self.tx.prepare_cached(sql)?.exists((n, self.me))
    }

    fn end_active(&self, active: &Active, end: &EndRecord) -> Result<Applied> {
        let requests = active.requests.saturating_add(end.requests);
        end_session(self.tx, active.n, &EndRecord { requests, ..end.clone() }, self.me, 0)?;
        Ok(Applied::Owned { requests })
    }

    /// The answer without an active record: an earlier call of this holder may have ended it.
    fn ended_before(&self, generation: GenerationId) -> Result<Applied> {
        Ok(self.claimed(generation)?.map_or(Applied::NotFound, |requests| Applied::Owned { requests }))
    }

    /// The requests of an end that this holder has claimed.
    fn claimed(&self, generation: GenerationId) -> Result<Option<u64>> {
        let sql = "SELECT requests FROM ends WHERE generation = ?1 AND holder = ?2";
        let requests = |row: &Row<'_>| Ok(unsigned(row.get(0)?));
        self.tx.prepare_cached(sql)?.query_row((generation.to_string(), self.me), requests).optional()
    }

    fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<Applied> {
        self.tx.prepare_cached(sql)?.execute(params)?;
        Ok(Applied::Ok)
    }
}

/// Turns an active record into a claimed end.
pub(super) fn end_session(tx: &Transaction<'_>, n: i64, end: &EndRecord, claimer: i64, attempts: u32) -> Result<()> {
    let next = end.next.as_ref().map(json).transpose()?;
    let sql = "INSERT OR REPLACE INTO ends
             (generation, id, details, started_at, requests, reason, next, ended_at, holder, attempts)
         SELECT generation, id, details, started_at, ?2, ?3, ?4, ?5, ?6, ?7 FROM sessions WHERE number = ?1";
    let (requests, ended_at) = (signed(end.requests), to_ms(end.ended_at));
    tx.prepare_cached(sql)?.execute(params![n, requests, end.reason.as_str(), next, ended_at, claimer, attempts])?;
    tx.prepare_cached("DELETE FROM sessions WHERE number = ?1")?.execute([n])?;
    Ok(())
}

fn unsigned(n: i64) -> u64 {
    n.try_into().unwrap_or(0)
}
