//! Recovery: claims the sessions and ends of holders whose lease has expired.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rusqlite::{Result, Row, Transaction};

use super::{
    changes::end_session,
    codec::{self, Read, to_ms},
    error::Failure,
    holder::Holder,
    lease::{Lease, LeaseProbe},
};
use crate::{
    registry::{EndRecord, Orphan},
    session::EndReason,
};

/// The number of sessions that one transaction releases for an expired holder.
const SHARED_BATCH: i32 = 1000;

/// The number of expired holders that are recovered at a time. Each has an open file.
const EXPIRED_BATCH: usize = 16;

/// A holder whose lease has expired. Its lock is held while it is recovered.
pub(super) struct ExpiredHolder {
    n: i64,
    lease: Option<Lease>,
}

/// Orphans on their way to the caller. If they do not arrive, the next call returns them.
pub(super) struct ClaimedOrphans {
    orphans: Vec<Orphan>,
    back: Arc<Mutex<Vec<Orphan>>>,
}

impl ClaimedOrphans {
    pub(super) fn take(mut self) -> Vec<Orphan> {
        mem::take(&mut self.orphans)
    }
}

impl Drop for ClaimedOrphans {
    fn drop(&mut self) {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.orphans);
    }
}

/// What one holder recovers of others.
#[derive(Default)]
pub(super) struct Recovery {
    expired: Vec<ExpiredHolder>,
    /// Orphans that were claimed for a call that was dropped.
    undelivered: Arc<Mutex<Vec<Orphan>>>,
}

impl Recovery {
    /// Called after each failure of the holder. A reopened holder has claimed nothing and holds no other lease.
    pub(super) fn on_failure(&mut self, failure: &Failure) {
        match failure {
            Failure::Fenced => {
                self.expired.clear();
                self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            Failure::DataLost => self.expired.clear(),
            _ => {}
        }
    }

    pub(super) fn claim_orphans(&mut self, holder: &mut Holder, max: usize) -> Result<ClaimedOrphans, Failure> {
        let mut claimed = ClaimedOrphans { orphans: Vec::new(), back: Arc::clone(&self.undelivered) };
        if max == 0 {
            return Ok(claimed);
        }
        {
            let mut back = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
            let some = max.min(back.len());
            claimed.orphans = back.drain(..some).collect();
        }
        while claimed.orphans.is_empty() {
            if self.expired.is_empty() && !self.find_expired(holder)? {
                break;
            }
            let Some(expired) = self.expired.last() else { break };
            let (orphans, exhausted) = recover(holder, expired.n, max)?;
            claimed.orphans = orphans;
            if exhausted {
                self.reap(holder);
            }
        }
        Ok(claimed)
    }

    /// Probes the leases of all other holders; false if none has expired.
    fn find_expired(&mut self, holder: &Holder) -> Result<bool, Failure> {
        let others: Vec<(i64, String)> = holder.with(|holder| {
            let mut query = holder.conn.prepare_cached("SELECT number, lease FROM holders WHERE number <> ?1")?;
            let rows = query.query_map([holder.me], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        if others.is_empty() {
            return Ok(false);
        }
        let lock = holder.lock_directory()?;
        for (n, lease) in others {
            match holder.leases.probe(&lock, &lease) {
                Ok(LeaseProbe::Alive) => {}
                Ok(LeaseProbe::Expired(lease)) => self.expired.push(ExpiredHolder { n, lease }),
                Err(error) => return Err(Failure::io(holder.leases.dir(), &error)),
            }
            if self.expired.len() == EXPIRED_BATCH {
                break;
            }
        }
        Ok(!self.expired.is_empty())
    }

    /// Removes the lease of the holder that was recovered.
    fn reap(&mut self, holder: &Holder) {
        // Without the directory lock the file stays; a later start removes it.
        if let Some(ExpiredHolder { lease: Some(lease), .. }) = self.expired.pop()
            && let Ok(lock) = holder.lock_directory()
        {
            lease.remove(&lock);
        }
    }
}

/// Claims up to `max` orphans, in one transaction. True if the expired holder has none left.
fn recover(holder: &mut Holder, expired: i64, max: usize) -> Result<(Vec<Orphan>, bool), Failure> {
    let me = holder.me;
    holder.in_transaction(|tx| {
        let mut orphans = claims_of(tx, expired, me, max)?;
        let rest = max - orphans.len();
        sessions_of(tx, expired, me, rest, &mut orphans)?;
        let sql = "DELETE FROM holders WHERE number = ?1
             AND NOT EXISTS (SELECT 1 FROM ends WHERE holder = ?1)
             AND NOT EXISTS (SELECT 1 FROM holds WHERE holder = ?1)";
        tx.prepare_cached(sql)?.execute([expired])?;
        let exhausted = !tx.prepare_cached("SELECT 1 FROM holders WHERE number = ?1")?.exists([expired])?;
        Ok((orphans, exhausted))
    })
}

/// Ends that the expired holder had claimed.
fn claims_of(tx: &Transaction<'_>, expired: i64, me: i64, max: usize) -> Result<Vec<Orphan>> {
    let sql = format!(
        "SELECT {}, requests, reason, next, ended_at, attempts, rowid FROM ends WHERE holder = ?1 LIMIT ?2",
        codec::RECORD
    );
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(9)?, codec::ended(row)?));
    let claims: Vec<_> = tx
        .prepare_cached(&sql)?
        .query_map((expired, i64::try_from(max).unwrap_or(i64::MAX)), row)?
        .collect::<Result<_>>()?;
    let mut claim = tx.prepare_cached("UPDATE ends SET holder = ?2, attempts = ?3 WHERE rowid = ?1")?;
    let mut orphans = Vec::new();
    for (rowid, read) in claims {
        if let Read::Readable((record, end, attempts)) = read {
            let attempts = attempts.saturating_add(1);
            claim.execute((rowid, me, attempts))?;
            orphans.push(Orphan::new(record, end, attempts));
        } else {
            warn_unreadable();
            claim.execute((rowid, 0, 0))?;
        }
    }
    Ok(orphans)
}

/// Sessions that the expired holder held: lost if it was the last holder, else released.
fn sessions_of(tx: &Transaction<'_>, expired: i64, me: i64, max: usize, orphans: &mut Vec<Orphan>) -> Result<()> {
    let sql = format!(
        "SELECT {}, s.number, s.requests,
             NOT h.released AND NOT EXISTS (SELECT 1 FROM holds o WHERE o.session = s.number AND o.holder <> ?1 AND NOT o.released)
         FROM holds h JOIN sessions s ON s.number = h.session WHERE h.holder = ?1 LIMIT ?2",
        codec::RECORD
    );
    let row =
        |row: &Row<'_>| Ok((row.get::<_, i64>(4)?, row.get::<_, i64>(5)?, row.get::<_, bool>(6)?, codec::record(row)?));
    let held: Vec<_> = tx.prepare_cached(&sql)?.query_map((expired, SHARED_BATCH), row)?.collect::<Result<_>>()?;
    let mut release = tx.prepare_cached("DELETE FROM holds WHERE session = ?1 AND holder = ?2")?;
    let mut room = max;
    for (n, requests, was_the_last, read) in held {
        if !was_the_last {
            release.execute((n, expired))?;
            continue;
        }
        if room == 0 {
            break;
        }
        room -= 1;
        let end = EndRecord::new(EndReason::Lost, None, now(), requests.try_into().unwrap_or(0));
        if let Read::Readable(record) = read {
            end_session(tx, n, &end, me, 1)?;
            orphans.push(Orphan::new(record, end, 1));
        } else {
            warn_unreadable();
            end_session(tx, n, &end, 0, 0)?;
        }
    }
    Ok(())
}

fn warn_unreadable() {
    tracing::error!(
        name: "session-registry-unreadable",
        "a record of the session registry cannot be read, so its session_end cannot be delivered; it stays in the view \
         `ending_sessions`, unclaimed",
    );
}

/// The current time, in whole milliseconds, as it will be decoded.
fn now() -> SystemTime {
    codec::from_ms(to_ms(SystemTime::now()))
}
