//! Recovery: adopts holders whose lease is free, and pages over what they held and had claimed.
//!
//! A dead holder is adopted by one change to its row. Nothing else moves: its holds and claims are read in pages, in the order
//! of the sessions' numbers, and a row is written again when its end is delivered.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{OptionalExtension, Result, Row, Transaction};

use super::{
    changes::set_aside_unreadable,
    codec::{self, Read},
    error::Failure,
    holder::Holder,
    lease::{Lease, LeaseProbe},
};
use crate::registry::Orphan;

/// The most holds and claims of a dead holder that one page covers. A page takes a few milliseconds. While there are orphans, a
/// page covers as many as are wanted.
const PAGE: usize = 1000;

/// The most notices of dead holders that one heartbeat deletes.
const NOTICES_AT_ONCE: usize = 1000;

/// The most dead holders that are adopted at a time. The lease file of each is open meanwhile.
const ADOPTED_AT_ONCE: usize = 64;

/// Orphans on their way to the caller. If they do not arrive, the next call returns them.
#[derive(Default)]
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

/// The result of one step of [`Recovery::claim_orphans`].
pub(super) enum Step {
    /// Orphans; or none, because there are none.
    Found(ClaimedOrphans),
    /// A page without orphans. There are more pages.
    Unfinished,
}

/// How far the pages of one adopted holder have come.
#[derive(Clone, Copy)]
enum Progress {
    /// All sessions up to the number `cursor` are done.
    Reading {
        cursor: i64,
        /// Whether the last page had orphans.
        had_orphans: bool,
    },
    Finished,
}

impl Progress {
    const START: Self = Self::Reading { cursor: 0, had_orphans: true };
}

/// What one holder recovers of others.
#[derive(Default)]
pub(super) struct Recovery {
    /// The holders that this one has adopted, as far as it knows.
    adopted: BTreeMap<i64, Progress>,
    /// Orphans that were claimed for a call that was dropped.
    undelivered: Arc<Mutex<Vec<Orphan>>>,
}

impl Recovery {
    /// Called after each failure of the holder. A reopened holder has claimed and adopted nothing.
    pub(super) fn on_failure(&mut self, failure: &Failure) {
        match failure {
            Failure::Fenced => {
                self.adopted.clear();
                self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            Failure::DataLost => self.adopted.clear(),
            _ => {}
        }
    }

    /// Reads about one page at most, so that the thread is free again soon.
    pub(super) fn claim_orphans(&mut self, holder: &mut Holder, max: usize) -> Result<Step, Failure> {
        let max = max.min(PAGE);
        let mut claimed = ClaimedOrphans { orphans: Vec::new(), back: Arc::clone(&self.undelivered) };
        if max == 0 {
            return Ok(Step::Found(claimed));
        }
        {
            let mut back = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
            let some = max.min(back.len());
            claimed.orphans = back.drain(..some).collect();
        }
        if claimed.orphans.is_empty() {
            claimed.orphans = claim_unclaimed(holder, max)?;
        }
        if !claimed.orphans.is_empty() {
            return Ok(Step::Found(claimed));
        }
        let (mut cost, mut may_adopt) = (0, true);
        while cost < PAGE {
            if let Some(range) = self.next_page(max, PAGE - cost) {
                let page = read_page(holder, &range, max)?;
                let reading = |cursor| Progress::Reading { cursor, had_orphans: !page.orphans.is_empty() };
                self.adopted.insert(range.dead, page.next.map_or(Progress::Finished, reading));
                if !page.orphans.is_empty() {
                    claimed.orphans = page.orphans;
                    return Ok(Step::Found(claimed));
                }
                cost += page.len.max(PAGE / 10);
            } else if may_adopt {
                may_adopt = self.adopt(holder)?;
                cost += PAGE / 10;
            } else {
                return Ok(Step::Found(claimed));
            }
        }
        Ok(Step::Unfinished)
    }

    /// The next page, of as many entries as are wanted, or of `rest` if the last one had no orphans.
    fn next_page(&self, max: usize, rest: usize) -> Option<Range> {
        self.adopted.iter().find_map(|(&dead, progress)| match *progress {
            Progress::Reading { cursor, had_orphans } => {
                let len = if had_orphans { max.min(rest) } else { rest };
                Some(Range { dead, cursor, len })
            }
            Progress::Finished => None,
        })
    }

    /// Adopts holders whose leases are free, and looks for holders that this one has adopted before. True if there may be more.
    fn adopt(&mut self, holder: &mut Holder) -> Result<bool, Failure> {
        let mut expired = Vec::new();
        for (n, lease, adopted) in others(holder)? {
            if adopted {
                self.adopted.entry(n).or_insert(Progress::START);
                continue;
            }
            if expired.len() == ADOPTED_AT_ONCE {
                break;
            }
            match holder.leases.probe(&lease) {
                Ok(LeaseProbe::Alive) => {}
                Ok(LeaseProbe::Expired(file)) => expired.push((n, lease, file)),
                Err(error) => return Err(Failure::io(holder.leases.dir(), &error)),
            }
        }
        if expired.is_empty() {
            return Ok(false);
        }
        let me = holder.me;
        let adopted = holder.in_transaction(|tx| {
            let mut adopted = Vec::new();
            for (n, lease, _) in &expired {
                adopted.extend(adopt_one(tx, me, *n, lease)?);
            }
            Ok(adopted)
        })?;
        for n in adopted {
            self.adopted.insert(n, Progress::START);
        }
        let is_full = expired.len() == ADOPTED_AT_ONCE;
        expired.into_iter().filter_map(|(.., file)| file).for_each(Lease::remove);
        Ok(is_full)
    }

    /// Removes the rows of adopted holders to which nothing refers any more. Called at each heartbeat: does not wait while
    /// another process writes.
    pub(super) fn remove_adopted(&mut self, holder: &mut Holder) -> Result<(), Failure> {
        let finished = |progress: &Progress| matches!(progress, Progress::Finished);
        let finished: Vec<_> = self.adopted.iter().filter(|(_, p)| finished(p)).map(|(&n, _)| n).collect();
        if finished.is_empty() {
            return Ok(());
        }
        let empty: Vec<i64> = holder.with(|holder| {
            let mut query = holder.conn.prepare_cached(
                "SELECT 1 FROM holders WHERE number = ?1
                 AND (EXISTS (SELECT 1 FROM holds WHERE holder = ?1)
                     OR EXISTS (SELECT 1 FROM sessions WHERE claimer = ?1))",
            )?;
            let mut empty = Vec::new();
            for &n in &finished {
                if !query.exists([n])? {
                    empty.push(n);
                }
            }
            Ok(empty)
        })?;
        if empty.is_empty() {
            return Ok(());
        }
        let me = holder.me;
        let removed = holder.in_transaction_now(|tx| {
            let mut removed = Vec::new();
            let mut notices = 0;
            for &n in &empty {
                if notices >= NOTICES_AT_ONCE {
                    break;
                }
                notices += delete_notices(tx, n)?;
                if remove_holder(tx, n)? || !is_adopted_by(tx, n, me)? {
                    removed.push(n);
                }
            }
            Ok(removed)
        })?;
        for n in removed {
            self.adopted.remove(&n);
        }
        Ok(())
    }
}

/// The other holders: their leases, and whether this one has adopted them. Those that others recover are left out.
fn others(holder: &Holder) -> Result<Vec<(i64, String, bool)>, Failure> {
    holder.with(|holder| {
        // An adopter without a row was removed by hand.
        let sql = "SELECT number, lease, adopted_by IS ?1 FROM holders h WHERE number <> ?1
             AND (adopted_by IS NULL OR adopted_by = ?1
                 OR NOT EXISTS (SELECT 1 FROM holders a WHERE a.number = h.adopted_by))";
        let mut query = holder.conn.prepare_cached(sql)?;
        let rows = query.query_map([holder.me], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect()
    })
}

/// Adopts a dead holder, and those that it had adopted. Nothing is adopted if its lease has changed, or if another holder was
/// faster. Returns the adopted holders.
fn adopt_one(tx: &Transaction<'_>, me: i64, dead: i64, lease: &str) -> Result<Vec<i64>> {
    let free = "SELECT 1 FROM holders h WHERE number = ?1 AND lease = ?2 AND (adopted_by IS NULL
         OR NOT EXISTS (SELECT 1 FROM holders a WHERE a.number = h.adopted_by))";
    if !tx.prepare_cached(free)?.exists((dead, lease))? {
        return Ok(Vec::new());
    }
    let sql = "UPDATE holders SET adopted_by = ?2 WHERE number = ?1 OR adopted_by = ?1 RETURNING number";
    tx.prepare_cached(sql)?.query_map((dead, me), |row| row.get(0))?.collect()
}

fn is_adopted_by(tx: &Transaction<'_>, n: i64, me: i64) -> Result<bool> {
    tx.prepare_cached("SELECT 1 FROM holders WHERE number = ?1 AND adopted_by = ?2")?.exists((n, me))
}

/// Deletes up to [`NOTICES_AT_ONCE`] notices of a holder that is dead. Returns their number.
pub(super) fn delete_notices(tx: &Transaction<'_>, holder: i64) -> Result<usize> {
    let sql = "DELETE FROM notices WHERE holder = ?1
         AND generation IN (SELECT generation FROM notices WHERE holder = ?1 LIMIT ?2)";
    tx.prepare_cached(sql)?.execute((holder, i64::try_from(NOTICES_AT_ONCE).unwrap_or(i64::MAX)))
}

/// Removes the row of a holder, unless something refers to it.
pub(super) fn remove_holder(tx: &Transaction<'_>, n: i64) -> Result<bool> {
    let sql = "DELETE FROM holders WHERE number = ?1
         AND NOT EXISTS (SELECT 1 FROM holds WHERE holder = ?1)
         AND NOT EXISTS (SELECT 1 FROM sessions WHERE claimer = ?1)
         AND NOT EXISTS (SELECT 1 FROM notices WHERE holder = ?1)
         AND NOT EXISTS (SELECT 1 FROM holders WHERE adopted_by = ?1)";
    Ok(tx.prepare_cached(sql)?.execute([n])? > 0)
}

/// Claims ends that no holder has claimed: dead letters that are to be delivered again.
fn claim_unclaimed(holder: &mut Holder, max: usize) -> Result<Vec<Orphan>, Failure> {
    // As in the index.
    let sql = "SELECT number FROM sessions WHERE reason IS NOT NULL AND claimer IS NULL AND dead = 0 LIMIT ?1";
    let limit = i64::try_from(max).unwrap_or(i64::MAX);
    if !holder.with(|holder| holder.conn.prepare_cached(sql)?.exists([1]))? {
        return Ok(Vec::new());
    }
    let me = holder.me;
    holder.in_transaction(|tx| {
        let numbers: Vec<i64> = tx.prepare_cached(sql)?.query_map([limit], |row| row.get(0))?.collect::<Result<_>>()?;
        let mut orphans = Vec::new();
        for n in numbers {
            match read_end(tx, n)? {
                Some(Read::Readable(orphan)) => {
                    tx.prepare_cached("UPDATE sessions SET claimer = ?2 WHERE number = ?1")?.execute((n, me))?;
                    orphans.push(orphan);
                }
                Some(Read::Unreadable) => set_aside_unreadable(tx, n)?,
                None => {}
            }
        }
        Ok(orphans)
    })
}

/// The entries of a dead holder behind the cursor, so many.
struct Range {
    dead: i64,
    cursor: i64,
    len: usize,
}

/// One page of a dead holder.
struct Page {
    orphans: Vec<Orphan>,
    /// The cursor of the next page; none if this was the last one.
    next: Option<i64>,
    /// The number of entries.
    len: usize,
}

/// What a dead holder refers to: a session that it held or an end that it had claimed.
struct Entry {
    session: i64,
    /// Another holder has not released the session, or this one has.
    is_shared: bool,
}

/// Reads one page. Only if a hold on a session of others has to be deleted is it a write.
fn read_page(holder: &mut Holder, range: &Range, max: usize) -> Result<Page, Failure> {
    match holder.in_read_transaction(|tx| page(tx, range, max, false))? {
        Some(page) => Ok(page),
        None => holder.in_transaction(|tx| Ok(page(tx, range, max, true)?.unwrap_or(Page::END))),
    }
}

impl Page {
    const END: Self = Self { orphans: Vec::new(), next: None, len: 0 };
}

/// None if something has to be written, and may not be.
fn page(tx: &Transaction<'_>, range: &Range, max: usize, may_write: bool) -> Result<Option<Page>> {
    let entries = entries(tx, range)?;
    let mut page = Page { orphans: Vec::new(), next: None, len: entries.len() };
    // The next page begins behind the last entry that was seen, unless there can be no more.
    if entries.len() == range.len {
        page.next = entries.last().map(|entry| entry.session);
    }
    for Entry { session, is_shared } in entries {
        if page.orphans.len() == max {
            page.next = Some(session - 1);
            break;
        }
        if is_shared {
            if !may_write {
                return Ok(None);
            }
            let sql = "DELETE FROM holds WHERE session = ?1 AND holder = ?2";
            tx.prepare_cached(sql)?.execute((session, range.dead))?;
            continue;
        }
        match read_end(tx, session)? {
            Some(Read::Readable(orphan)) => page.orphans.push(orphan),
            Some(Read::Unreadable) if may_write => set_aside_unreadable(tx, session)?,
            Some(Read::Unreadable) => return Ok(None),
            None => {}
        }
    }
    Ok(Some(page))
}

/// The entries of the range, in the order of the sessions' numbers. Holds and claims are read together: a hold
/// that becomes a claim meanwhile is not seen twice.
fn entries(tx: &Transaction<'_>, range: &Range) -> Result<Vec<Entry>> {
    let sql = "SELECT h.session, h.released OR EXISTS
             (SELECT 1 FROM holds o WHERE o.session = h.session AND o.holder <> ?1 AND NOT o.released)
         FROM holds h WHERE h.holder = ?1 AND h.session > ?2
         UNION ALL
         SELECT number, 0 FROM sessions WHERE claimer = ?1 AND number > ?2 AND NOT dead
         ORDER BY 1 LIMIT ?3";
    let entry = |row: &Row<'_>| Ok(Entry { session: row.get(0)?, is_shared: row.get(1)? });
    let len = i64::try_from(range.len).unwrap_or(i64::MAX);
    tx.prepare_cached(sql)?.query_map((range.dead, range.cursor, len), entry)?.collect()
}

/// The end in a row.
fn read_end(tx: &Transaction<'_>, n: i64) -> Result<Option<Read<Orphan>>> {
    let sql = format!("SELECT {} FROM sessions WHERE number = ?1", codec::END);
    let end = |row: &Row<'_>| Ok(codec::ended(row)?.map(|(record, end, attempts)| Orphan::new(record, end, attempts)));
    tx.prepare_cached(&sql)?.query_row([n], end).optional()
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Dir, *};

    fn lease_of(holder: &Holder, n: i64) -> String {
        holder.conn.query_row("SELECT lease FROM holders WHERE number = ?1", [n], |row| row.get(0)).unwrap()
    }

    fn adopt(holder: &mut Holder, dead: i64, lease: &str) -> Vec<i64> {
        let me = holder.me;
        holder.in_transaction(|tx| adopt_one(tx, me, dead, lease)).unwrap()
    }

    #[test]
    fn of_two_that_find_one_lease_free_one_adopts_its_holder() {
        let dir = Dir::new();
        let (mut one, mut two, dead) = (dir.holder(), dir.holder(), dir.holder());
        let (n, lease) = (dead.me, lease_of(&one, dead.me));
        drop(dead);
        assert_eq!(adopt(&mut one, n, &lease), [n]);
        assert_eq!(adopt(&mut two, n, &lease), [] as [i64; 0], "it is the other one's");
        // The adopter dies: both go to the next one, in one step.
        let (n_one, lease) = (one.me, lease_of(&two, one.me));
        drop(one);
        assert_eq!(adopt(&mut two, n_one, &lease), [n_one, n]);
    }

    #[test]
    fn a_holder_whose_lease_was_replaced_meanwhile_is_not_adopted() {
        let dir = Dir::new();
        let (mut one, mut living) = (dir.holder(), dir.holder());
        let lease = lease_of(&one, living.me);
        std::fs::remove_file(living.leases.dir().join(format!("{lease}.lease"))).unwrap();
        living.heartbeat().unwrap();
        assert_eq!(adopt(&mut one, living.me, &lease), [] as [i64; 0]);
        living.heartbeat().unwrap();
    }
}
