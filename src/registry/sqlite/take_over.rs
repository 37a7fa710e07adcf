//! Taking over what the dead have left behind.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rusqlite::{Result, Row, Transaction};

use super::{
    changes::end_session,
    failure::Failure,
    holder::Holder,
    lease::{Found, Lease},
    rows::{self, Read, to_ms},
};
use crate::{
    registry::{EndRecord, Orphan},
    session::EndReason,
};

/// Sessions that a living holder holds too, and so are only let go, in one transaction.
const CHUNK: i32 = 1000;

/// The dead that are recovered at a time: each is an open file.
const AT_A_TIME: usize = 16;

/// A holder that was found dead. Its lock is ours for as long as it is being recovered.
pub(super) struct Dead {
    n: i64,
    lease: Option<Lease>,
}

/// Orphans on their way to whoever asked. If they do not arrive they go to the next one who asks.
pub(super) struct Handed {
    orphans: Vec<Orphan>,
    back: Arc<Mutex<Vec<Orphan>>>,
}

impl Handed {
    pub(super) fn take(mut self) -> Vec<Orphan> {
        mem::take(&mut self.orphans)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.orphans);
    }
}

impl Holder {
    pub(super) fn claim_orphans(&mut self, max: usize) -> Result<Handed, Failure> {
        let mut handed = Handed { orphans: Vec::new(), back: Arc::clone(&self.undelivered) };
        if max == 0 {
            return Ok(handed);
        }
        {
            let mut back = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
            let some = max.min(back.len());
            handed.orphans = back.drain(..some).collect();
        }
        while handed.orphans.is_empty() {
            if self.dead.is_empty() && !self.find_dead()? {
                break;
            }
            let Some(dead) = self.dead.last() else { break };
            let (orphans, exhausted) = self.recover(dead.n, max)?;
            handed.orphans = orphans;
            if exhausted {
                self.bury();
            }
        }
        Ok(handed)
    }

    /// Looks at the leases of all the others; false if everybody lives.
    fn find_dead(&mut self) -> Result<bool, Failure> {
        let others: Vec<(i64, String)> = self.with(|holder| {
            let mut query = holder.conn.prepare_cached("SELECT n, lease FROM holders WHERE n <> ?1")?;
            let rows = query.query_map([holder.me], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        if others.is_empty() {
            return Ok(false);
        }
        let guard = self.guard()?;
        for (n, lease) in others {
            match self.leases.look_at(&guard, &lease) {
                Ok(Found::Living) => {}
                Ok(Found::Dead(lease)) => self.dead.push(Dead { n, lease }),
                Err(error) => return Err(Failure::io(self.leases.dir(), &error)),
            }
            if self.dead.len() == AT_A_TIME {
                break;
            }
        }
        Ok(!self.dead.is_empty())
    }

    /// Claims up to `max`, in one transaction. True if nothing of the dead holder is left then.
    fn recover(&mut self, dead: i64, max: usize) -> Result<(Vec<Orphan>, bool), Failure> {
        let me = self.me;
        self.in_transaction(|tx| {
            let mut orphans = claims_of(tx, dead, me, max)?;
            let rest = max - orphans.len();
            sessions_of(tx, dead, me, rest, &mut orphans)?;
            let sql = "DELETE FROM holders WHERE n = ?1
                 AND NOT EXISTS (SELECT 1 FROM ends WHERE holder = ?1)
                 AND NOT EXISTS (SELECT 1 FROM holds WHERE holder = ?1)";
            tx.prepare_cached(sql)?.execute([dead])?;
            let exhausted = !tx.prepare_cached("SELECT 1 FROM holders WHERE n = ?1")?.exists([dead])?;
            Ok((orphans, exhausted))
        })
    }

    /// Removes the lease of the one that was recovered.
    fn bury(&mut self) {
        // Without the guard the file stays, and is removed by a later start.
        if let Some(Dead { lease: Some(lease), .. }) = self.dead.pop()
            && let Ok(guard) = self.guard()
        {
            lease.remove(&guard);
        }
    }
}

/// Ends that the dead one had claimed.
fn claims_of(tx: &Transaction<'_>, dead: i64, me: i64, max: usize) -> Result<Vec<Orphan>> {
    let sql = format!(
        "SELECT {}, requests, reason, next, ended_at, tries, rowid FROM ends WHERE holder = ?1 LIMIT ?2",
        rows::RECORD
    );
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(9)?, rows::ended(row)?));
    let claims: Vec<_> = tx
        .prepare_cached(&sql)?
        .query_map((dead, i64::try_from(max).unwrap_or(i64::MAX)), row)?
        .collect::<Result<_>>()?;
    let mut claim = tx.prepare_cached("UPDATE ends SET holder = ?2, tries = ?3 WHERE rowid = ?1")?;
    let mut orphans = Vec::new();
    for (rowid, read) in claims {
        if let Read::Good((record, end, tries)) = read {
            let tries = tries.saturating_add(1);
            claim.execute((rowid, me, tries))?;
            orphans.push(Orphan::new(record, end, tries));
        } else {
            unreadable();
            claim.execute((rowid, 0, 0))?;
        }
    }
    Ok(orphans)
}

/// Sessions that the dead one held: those that nobody else holds are lost, and the others are let go.
fn sessions_of(tx: &Transaction<'_>, dead: i64, me: i64, max: usize, orphans: &mut Vec<Orphan>) -> Result<()> {
    let sql = format!(
        "SELECT {}, s.n, s.requests,
             NOT h.released AND NOT EXISTS (SELECT 1 FROM holds o WHERE o.session = s.n AND o.holder <> ?1 AND NOT o.released)
         FROM holds h JOIN sessions s ON s.n = h.session WHERE h.holder = ?1 LIMIT ?2",
        rows::RECORD
    );
    let row =
        |row: &Row<'_>| Ok((row.get::<_, i64>(4)?, row.get::<_, i64>(5)?, row.get::<_, bool>(6)?, rows::record(row)?));
    let held: Vec<_> = tx.prepare_cached(&sql)?.query_map((dead, CHUNK), row)?.collect::<Result<_>>()?;
    let mut let_go = tx.prepare_cached("DELETE FROM holds WHERE session = ?1 AND holder = ?2")?;
    let mut room = max;
    for (n, requests, was_the_last, read) in held {
        if !was_the_last {
            let_go.execute((n, dead))?;
            continue;
        }
        if room == 0 {
            break;
        }
        room -= 1;
        let end = EndRecord::new(EndReason::Lost, None, now(), requests.try_into().unwrap_or(0));
        if let Read::Good(record) = read {
            end_session(tx, n, &end, me, 1)?;
            orphans.push(Orphan::new(record, end, 1));
        } else {
            unreadable();
            end_session(tx, n, &end, 0, 0)?;
        }
    }
    Ok(())
}

fn unreadable() {
    tracing::error!(
        name: "session-registry-unreadable",
        "a record of the session registry cannot be read, and its session_end cannot be delivered; it stays in the view \
         `ending_sessions`, claimed by nobody",
    );
}

/// Now, as it will be read again.
fn now() -> SystemTime {
    rows::from_ms(to_ms(SystemTime::now()))
}
