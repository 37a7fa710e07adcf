//! Applies each [`Change`] within a transaction.

use std::cell::RefCell;

use rusqlite::{OptionalExtension, Params, Result, Row, Transaction, params};

use super::{
    codec::{self, Read, json, now, signed, to_ms, unsigned},
    transaction::{ClosedTransaction, TransactionHook, end_event},
};
use crate::{
    registry::{Applied, Change, EndRecord, HoldMode, Record},
    session::{EndReason, GenerationId, SessionEnd, SessionId},
};

/// Whether a living holder has a hold on the row that it has not released. A dead holder counts as living until it is adopted.
const IS_HELD: &str = "EXISTS (SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
    WHERE h.session = sessions.number AND NOT h.released AND o.adopted_by IS NULL)";

/// Whether the holder `?2` delivers the end in the row: it has claimed it, or has adopted the one that did.
const IS_CLAIMED: &str = "(claimer = ?2 OR EXISTS
    (SELECT 1 FROM holders o WHERE o.number = sessions.claimer AND o.adopted_by = ?2))";

/// As [`IS_CLAIMED`]; or only adopted holders hold the row, and `?2` has adopted one of them.
const IS_OWED: &str = "CASE WHEN reason IS NOT NULL
    THEN (claimer = ?2 OR EXISTS (SELECT 1 FROM holders o WHERE o.number = sessions.claimer AND o.adopted_by = ?2))
    ELSE EXISTS (SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
            WHERE h.session = sessions.number AND NOT h.released AND o.adopted_by = ?2)
        AND NOT EXISTS (SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
            WHERE h.session = sessions.number AND NOT h.released AND o.adopted_by IS NULL)
    END";

/// The row of one generation.
struct Found {
    n: i64,
    requests: u64,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Active,
    /// It has ended, and this holder delivers the end.
    Claimed,
    /// It has ended otherwise.
    Gone,
}

/// A transaction of the holder `me`.
pub(super) struct Changes<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) me: i64,
    pub(super) hook: Option<&'a TransactionHook>,
    /// False once it has ended a transaction.
    pub(super) calls_hook: bool,
    /// The ends for which the hook is called, in one slice.
    pub(super) commits: RefCell<Vec<Commit>>,
}

/// An end for which the transaction hook is to be called.
pub(super) struct Commit {
    n: i64,
    end: SessionEnd,
    /// Other hooks are still owed.
    keep: bool,
    /// Where the answer stands.
    at: (usize, usize),
}

impl<'a> Changes<'a> {
    /// Applies the changes of several calls.
    pub(super) fn apply_all(&self, calls: &[&[Change]]) -> Result<Vec<Vec<Applied>>> {
        let mut answers = Vec::with_capacity(calls.len());
        for (i, call) in calls.iter().enumerate() {
            let apply = |(j, change)| self.apply(change, (i, j));
            answers.push(call.iter().enumerate().map(apply).collect::<Result<Vec<_>>>()?);
        }
        let commits = self.commits.take();
        let (Some(hook), false) = (self.hook, commits.is_empty()) else { return Ok(answers) };
        let ends: Vec<_> = commits.iter().map(|commit| commit.end.clone()).collect();
        let errors = match self.calls_hook {
            true => hook.session_end(self.tx, &ends)?,
            false => vec![Some(ClosedTransaction::TEXT.to_owned()); ends.len()],
        };
        for (Commit { n, keep, at: (i, j), .. }, error) in commits.into_iter().zip(errors) {
            answers[i][j] = match (error, keep) {
                (Some(error), _) => Applied::Failed(error),
                (None, true) => self.run("UPDATE sessions SET committed = 1 WHERE number = ?1", [n])?,
                (None, false) => self.run("DELETE FROM sessions WHERE number = ?1", [n])?,
            };
        }
        Ok(answers)
    }

    fn apply(&self, change: &Change, at: (usize, usize)) -> Result<Applied> {
        match change {
            Change::Hold { record, mode } => self.hold(record, *mode),
            Change::Update(record) => self.update(record),
            Change::Release { id, generation, end } => self.release(id, *generation, end),
            Change::End { id, generation, end } => self.end(id, *generation, end),
            Change::Attempted { generation, attempts } => {
                let sql = format!("UPDATE sessions SET attempts = ?3 WHERE generation = ?1 AND {IS_OWED}");
                self.run(&sql, (generation.to_string(), self.me, attempts))
            }
            Change::Delivered { generation } => {
                if self.is_committed_later(*generation, false, at)? {
                    return Ok(Applied::Ok);
                }
                let sql = format!("DELETE FROM sessions WHERE generation = ?1 AND {IS_OWED}");
                self.run(&sql, (generation.to_string(), self.me))
            }
            Change::Commit { generation } => {
                self.is_committed_later(*generation, true, at)?;
                Ok(Applied::Ok)
            }
            Change::DeadLetter { generation, error } => self.dead_letter(*generation, error),
            Change::Keep { id, generation } => self.keep(id, *generation),
            Change::Forget { id, generation } => self.forget(id, *generation),
            Change::Acknowledge { id: _, generation } => {
                let sql = "DELETE FROM notices WHERE holder = ?2 AND generation = ?1";
                self.run(sql, (generation.to_string(), self.me))
            }
        }
    }

    fn hold(&self, record: &Record, mode: HoldMode) -> Result<Applied> {
        let (generation, id) = (record.generation.to_string(), record.session.id.as_str());
        let sql = "SELECT 1 FROM notices WHERE holder = ?2 AND generation = ?1";
        if self.tx.prepare_cached(sql)?.exists((&generation, self.me))? {
            return Ok(Applied::Gone);
        }
        let details = json(&record.session)?;
        match self.find(None, &generation)? {
            Some(Found { n, state: State::Active, .. }) => {
                self.add_holder(n)?;
                self.run("UPDATE sessions SET details = ?2 WHERE number = ?1", (n, details))?;
                return Ok(Applied::Created);
            }
            // This call repeats an earlier one.
            Some(Found { state: State::Claimed, .. }) => return Ok(Applied::Created),
            Some(Found { state: State::Gone, .. }) => return Ok(Applied::Gone),
            None => {}
        }
        let others = self.actives_of(id)?;
        if mode != HoldMode::Create {
            for (n, read) in &others.held {
                if let Read::Readable(record) = read {
                    self.add_holder(*n)?;
                    return Ok(Applied::Joined(record.clone()));
                }
                set_aside_unreadable(self.tx, *n)?;
            }
        }
        if mode == HoldMode::Join {
            return Ok(Applied::NotFound);
        }
        for n in others.lost {
            self.mark_lost(n)?;
        }
        let sql = "INSERT INTO sessions (id, generation, details, started_at) VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![id, generation, details, to_ms(record.started_at)])?;
        self.add_holder(self.tx.last_insert_rowid())?;
        if let Some(hook) = self.hook.filter(|_| self.calls_hook) {
            hook.session_start(self.tx, record)?;
        }
        Ok(Applied::Created)
    }

    /// Whether the transaction hook is called for this end, after all other changes.
    fn is_committed_later(&self, generation: GenerationId, keep: bool, at: (usize, usize)) -> Result<bool> {
        if self.hook.is_none() {
            return Ok(false);
        }
        let sql = format!(
            "SELECT {}, number FROM sessions WHERE generation = ?1 AND NOT committed AND {IS_OWED}",
            codec::END
        );
        let mut query = self.tx.prepare_cached(&sql)?;
        let mut rows = query.query((generation.to_string(), self.me))?;
        let Some(row) = rows.next()? else { return Ok(false) };
        let n = row.get(9)?;
        match codec::ended(row)? {
            Read::Readable((record, end, _)) => {
                let end = end_event(record, end);
                self.commits.borrow_mut().push(Commit { n, end, keep, at });
            }
            Read::Unreadable => set_aside_unreadable(self.tx, n)?,
        }
        Ok(true)
    }

    /// The active rows of an id, oldest first.
    fn actives_of(&self, id: &str) -> Result<Actives> {
        let sql = format!(
            "SELECT {}, number, {IS_HELD} FROM sessions WHERE id = ?1 AND reason IS NULL ORDER BY number",
            codec::RECORD
        );
        let mut query = self.tx.prepare_cached(&sql)?;
        let mut rows = query.query([id])?;
        let mut actives = Actives::default();
        while let Some(row) = rows.next()? {
            let n = row.get(4)?;
            if row.get(5)? {
                actives.held.push((n, codec::record(row)?));
            } else {
                actives.lost.push(n);
            }
        }
        Ok(actives)
    }

    /// Ends a session that only adopted holders hold. It is claimed by one of them, so that its adopter finds it.
    fn mark_lost(&self, n: i64) -> Result<()> {
        let sql = "UPDATE sessions SET reason = ?2, ended_at = ?3, claimer =
                (SELECT h.holder FROM holds h JOIN holders o ON o.number = h.holder
                 WHERE h.session = ?1 AND o.adopted_by IS NOT NULL ORDER BY h.released LIMIT 1)
             WHERE number = ?1";
        self.run(sql, (n, EndReason::Lost.as_str(), to_ms(now())))?;
        self.delete_holds(n)
    }

    fn add_holder(&self, n: i64) -> Result<Applied> {
        let sql = "INSERT INTO holds (session, holder, released) VALUES (?1, ?2, 0)
             ON CONFLICT (session, holder) DO UPDATE SET released = 0";
        self.run(sql, (n, self.me))
    }

    fn update(&self, record: &Record) -> Result<Applied> {
        let sql = "UPDATE sessions SET details = ?1 WHERE id = ?2 AND generation = ?3 AND reason IS NULL
             AND EXISTS (SELECT 1 FROM holds WHERE session = number AND holder = ?4 AND NOT released)";
        let (id, generation) = (record.session.id.as_str(), record.generation.to_string());
        let updated = self.tx.prepare_cached(sql)?.execute(params![json(&record.session)?, id, generation, self.me])?;
        Ok(if updated > 0 { Applied::Ok } else { Applied::Gone })
    }

    fn release(&self, id: &SessionId, generation: GenerationId, end: &EndRecord) -> Result<Applied> {
        let generation = generation.to_string();
        let found = match self.find(Some(id), &generation)? {
            Some(found) if found.state == State::Active => found,
            other => return Ok(ended_before(other.as_ref())),
        };
        match self.released(found.n)? {
            None => return Ok(Applied::Gone),
            // A repeat: the requests are already counted.
            Some(true) => return Ok(Applied::HeldElsewhere),
            Some(false) => {}
        }
        if !self.has_others(found.n)? {
            return self.end_active(&found, id, &generation, end);
        }
        self.run("UPDATE holds SET released = 1 WHERE session = ?1 AND holder = ?2", (found.n, self.me))?;
        let requests = found.requests.saturating_add(end.requests);
        self.run("UPDATE sessions SET requests = ?2 WHERE number = ?1", (found.n, signed(requests)))?;
        Ok(Applied::HeldElsewhere)
    }

    fn end(&self, id: &SessionId, generation: GenerationId, end: &EndRecord) -> Result<Applied> {
        let generation = generation.to_string();
        match self.find(Some(id), &generation)? {
            Some(found) if found.state == State::Active => self.end_active(&found, id, &generation, end),
            other => Ok(ended_before(other.as_ref())),
        }
    }

    fn keep(&self, id: &SessionId, generation: GenerationId) -> Result<Applied> {
        let n = match self.find(Some(id), &generation.to_string())? {
            Some(Found { n, state: State::Active, .. }) => n,
            _ => return Ok(Applied::Ok),
        };
        if self.released(n)? != Some(false) {
            return Ok(Applied::Ok);
        }
        if self.has_others(n)? {
            return self.run("DELETE FROM holds WHERE session = ?1 AND holder = ?2", (n, self.me));
        }
        self.run("DELETE FROM sessions WHERE number = ?1", [n])
    }

    fn forget(&self, id: &SessionId, generation: GenerationId) -> Result<Applied> {
        let generation = generation.to_string();
        if let Some(Found { n, state: State::Active, .. }) = self.find(Some(id), &generation)? {
            self.notify(n, id, &generation)?;
            self.run("DELETE FROM sessions WHERE number = ?1", [n])?;
        }
        Ok(Applied::Ok)
    }

    fn dead_letter(&self, generation: GenerationId, error: &str) -> Result<Applied> {
        let sql = format!(
            "UPDATE sessions SET dead = 1, error = ?3, claimer = NULL, reason = coalesce(reason, ?4),
                 ended_at = coalesce(ended_at, ?5)
             WHERE generation = ?1 AND {IS_OWED} RETURNING number"
        );
        let params = params![generation.to_string(), self.me, error, EndReason::Lost.as_str(), to_ms(now())];
        let n: Option<i64> = self.tx.prepare_cached(&sql)?.query_row(params, |row| row.get(0)).optional()?;
        n.map_or(Ok(()), |n| self.delete_holds(n))?;
        Ok(Applied::Ok)
    }

    /// The row of the generation. If an id is given, it must be that of the row.
    fn find(&self, id: Option<&SessionId>, generation: &str) -> Result<Option<Found>> {
        let sql = format!(
            "SELECT number, requests, CASE WHEN reason IS NULL THEN {IS_HELD} WHEN {IS_CLAIMED} THEN 2 ELSE 0 END
             FROM sessions WHERE generation = ?1 AND (?3 IS NULL OR id = ?3)"
        );
        let found = |row: &Row<'_>| {
            let state = match row.get(2)? {
                1 => State::Active,
                2 => State::Claimed,
                _ => State::Gone,
            };
            Ok(Found { n: row.get(0)?, requests: unsigned(row.get(1)?), state })
        };
        self.tx.prepare_cached(&sql)?.query_row((generation, self.me, id.map(SessionId::as_str)), found).optional()
    }

    /// Whether this holder has released the session; `None` if it does not hold it.
    fn released(&self, n: i64) -> Result<Option<bool>> {
        let sql = "SELECT released FROM holds WHERE session = ?1 AND holder = ?2";
        self.tx.prepare_cached(sql)?.query_row((n, self.me), |row| row.get(0)).optional()
    }

    /// Whether another holder that is not adopted has not released the session.
    fn has_others(&self, n: i64) -> Result<bool> {
        let sql = "SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
             WHERE h.session = ?1 AND h.holder <> ?2 AND NOT h.released AND o.adopted_by IS NULL";
        self.tx.prepare_cached(sql)?.exists((n, self.me))
    }

    fn end_active(&self, active: &Found, id: &SessionId, generation: &str, end: &EndRecord) -> Result<Applied> {
        self.notify(active.n, id, generation)?;
        let requests = active.requests.saturating_add(end.requests);
        let next = end.next.as_ref().map(json).transpose()?;
        let sql =
            "UPDATE sessions SET requests = ?2, reason = ?3, next = ?4, ended_at = ?5, claimer = ?6 WHERE number = ?1";
        let (reason, ended_at) = (end.reason.as_str(), to_ms(end.ended_at));
        self.run(sql, params![active.n, signed(requests), reason, next, ended_at, self.me])?;
        self.delete_holds(active.n)?;
        Ok(Applied::Owned { requests })
    }

    /// A notice for each other living holder that has not released the session.
    fn notify(&self, n: i64, id: &SessionId, generation: &str) -> Result<Applied> {
        let sql = "INSERT OR IGNORE INTO notices (holder, generation, id, ended_at)
             SELECT h.holder, ?3, ?4, ?5 FROM holds h JOIN holders o ON o.number = h.holder
             WHERE h.session = ?1 AND h.holder <> ?2 AND NOT h.released AND o.adopted_by IS NULL";
        self.run(sql, params![n, self.me, generation, id.as_str(), to_ms(now())])
    }

    fn delete_holds(&self, n: i64) -> Result<()> {
        self.run("DELETE FROM holds WHERE session = ?1", [n]).map(drop)
    }

    fn run(&self, sql: &str, params: impl Params) -> Result<Applied> {
        self.tx.prepare_cached(sql)?.execute(params)?;
        Ok(Applied::Ok)
    }
}

/// The active rows of an id.
#[derive(Default)]
struct Actives {
    held: Vec<(i64, Read<Record>)>,
    /// Only adopted holders hold these.
    lost: Vec<i64>,
}

/// The answer without an active record: an earlier call of this holder may have ended it.
fn ended_before(found: Option<&Found>) -> Applied {
    match found {
        Some(&Found { state: State::Claimed, requests, .. }) => Applied::Owned { requests },
        _ => Applied::Gone,
    }
}

/// Makes a row that cannot be read a dead letter: it blocks no other row, and an operator sees it.
pub(super) fn set_aside_unreadable(tx: &Transaction<'_>, n: i64) -> Result<()> {
    tracing::error!(
        name: "session-registry-unreadable",
        "a record of the session registry cannot be read, so its session_end cannot be delivered; it stays in the view \
         `dead_letters`",
    );
    let sql = "UPDATE sessions SET dead = 1, error = 'this record cannot be read', claimer = NULL,
             reason = coalesce(reason, ?2), ended_at = coalesce(ended_at, ?3)
         WHERE number = ?1";
    tx.prepare_cached(sql)?.execute((n, EndReason::Lost.as_str(), to_ms(now())))?;
    tx.prepare_cached("DELETE FROM holds WHERE session = ?1")?.execute([n])?;
    Ok(())
}
