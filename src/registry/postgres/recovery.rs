//! Recovery: adopts holders whose leases have expired, and pages over what they held and had claimed.
//!
//! A dead holder is adopted by one change to its row. Nothing else moves: its holds and claims are read in pages, in the order of
//! the sessions' numbers, and a row is written again when its end is delivered.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sqlx::Row;

use super::{
    super::{Orphan, RegistryError},
    changes::{of_sessions, set_aside_unreadable},
    codec::{self, end_columns},
    error::Failure,
    holder::{Context, Holder, SchemaLock, Tx},
    sql::now,
};

/// The most entries of one page, which takes a few milliseconds.
const PAGE: usize = 1000;

/// A call that has read so many pages without an orphan returns none.
const PAGES_PER_CALL: usize = 16;

/// How long a call waits until no other holder writes, so that it can adopt.
const PATIENCE: Duration = Duration::from_millis(600);

/// The most notices of adopted holders that one heartbeat deletes.
const NOTICES_AT_ONCE: i64 = 1000;

/// Holders whose sessions this holder may recover: those without a lease, and those whose adopter has no row any more, which
/// was then removed by hand.
macro_rules! adoptable {
    () => {
        concat!(
            "h.number <> $1 AND NOT h.empty AND CASE WHEN h.adopted_by IS NULL
                THEN h.released OR h.expires_at < ",
            now!(),
            " AND ",
            now!(),
            " >= (SELECT grace_until FROM {s}.store)
                ELSE NOT EXISTS (SELECT 1 FROM {s}.holders a WHERE a.number = h.adopted_by) END"
        )
    };
}

/// How far the pages of one adopted holder have come.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// All sessions up to this number are done.
    cursor: i64,
    is_finished: bool,
    adopted_at: i64,
}

/// What one holder recovers of others. A copy is changed during a call, and stored when its answer is complete: if the caller
/// drops the call, the next one reads the same again.
#[derive(Clone, Debug, Default)]
pub(super) struct Recovery {
    adopted: BTreeMap<i64, Progress>,
}

impl Recovery {
    /// A holder that is not read to its end.
    fn next(&self) -> Option<(i64, Progress)> {
        self.adopted.iter().map(|(dead, progress)| (*dead, *progress)).find(|(_, progress)| !progress.is_finished)
    }

    /// Those that are read to their end.
    pub(super) fn finished(&self) -> Vec<i64> {
        self.adopted.iter().filter(|(_, progress)| progress.is_finished).map(|(dead, _)| *dead).collect()
    }

    pub(super) fn remove(&mut self, removed: &[i64]) {
        self.adopted.retain(|dead, _| !removed.contains(dead));
    }

    /// A page was read.
    fn advance(&mut self, dead: i64, progress: Progress, page: Page, orphans: &mut Vec<Orphan>) {
        orphans.extend(page.orphans);
        let cursor = page.next.unwrap_or(progress.cursor);
        self.adopted.insert(dead, Progress { cursor, is_finished: page.next.is_none(), ..progress });
    }

    /// Forgets all holders but these. New ones are read from the beginning.
    fn set_adopted(&mut self, adopted: Vec<(i64, i64)>) {
        let before = std::mem::take(&mut self.adopted);
        self.adopted = adopted
            .into_iter()
            .map(|(dead, adopted_at)| {
                let start = Progress { cursor: 0, is_finished: false, adopted_at };
                (dead, before.get(&dead).copied().unwrap_or(start))
            })
            .collect();
    }
}

pub(super) async fn claim_orphans(
    holder: &mut Holder,
    context: Context<'_>,
    max: usize,
) -> Result<Vec<Orphan>, RegistryError> {
    if max == 0 {
        return Ok(Vec::new());
    }
    let mut recovery = holder.recovery.clone();
    let start = Instant::now();
    let mut has_tried = false;
    let mut orphans = Vec::new();
    // As many entries as are wanted; more if there were no orphans among them.
    let mut len = max.min(PAGE);
    let may_adopt_more = loop {
        let mut tx = holder.begin(context, SchemaLock::None).await?;
        let first = first_page(&mut tx, &mut recovery, len, max).await;
        let (page, has_adoptable) = holder.end(context, tx, first).await?;
        if let Some((dead, progress, page)) = page {
            len = PAGE;
            recovery.advance(dead, progress, page, &mut orphans);
            break has_adoptable;
        }
        // The rest is adopted, by this holder or another one, once this is read.
        if !has_adoptable || has_tried && start.elapsed() > PATIENCE {
            break has_adoptable;
        }
        adopt(holder, context).await?;
        has_tried = true;
    };
    for _ in 1..PAGES_PER_CALL {
        let Some((dead, progress)) = recovery.next().filter(|_| orphans.is_empty()) else { break };
        let mut tx = holder.begin(context, SchemaLock::None).await?;
        let page = read_page(&mut tx, dead, progress, len, max).await;
        len = PAGE;
        let page = holder.end(context, tx, page).await?;
        recovery.advance(dead, progress, page, &mut orphans);
    }
    holder.recovery_was_cut = orphans.is_empty() && (recovery.next().is_some() || may_adopt_more);
    // Set last: if the caller drops this call before, the next one must return the same orphans.
    holder.recovery = recovery;
    Ok(orphans)
}

/// Reads which holders this one has adopted, and a page of one of them, and whether there are others that it may adopt.
async fn first_page(
    tx: &mut Tx,
    recovery: &mut Recovery,
    len: usize,
    max: usize,
) -> Result<(Option<(i64, Progress, Page)>, bool), Failure> {
    let (adopted, has_adoptable) = read_others(tx).await?;
    recovery.set_adopted(adopted);
    let Some((dead, progress)) = recovery.next() else { return Ok((None, has_adoptable)) };
    Ok((Some((dead, progress, read_page(tx, dead, progress, len, max).await?)), has_adoptable))
}

/// The holders that this one has adopted, with the times, and whether there are others that it may adopt.
async fn read_others(tx: &mut Tx) -> Result<(Vec<(i64, i64)>, bool), Failure> {
    let read = tx.sql.text(concat!(
        "SELECT h.number, h.adopted_at FROM {s}.holders h WHERE h.adopted_by = $1 AND NOT h.empty
         UNION ALL (SELECT NULL, NULL FROM {s}.holders h WHERE ",
        adoptable!(),
        " LIMIT 1)"
    ));
    let me = tx.me;
    let (mut adopted, mut has_adoptable) = (Vec::new(), false);
    for row in sqlx::query(read).persistent(false).bind(me).fetch_all(tx.conn()).await? {
        match row.try_get::<Option<i64>, _>(0)? {
            Some(number) => adopted.push((number, row.try_get::<Option<i64>, _>(1)?.unwrap_or_default())),
            None => has_adoptable = true,
        }
    }
    Ok((adopted, has_adoptable))
}

/// Adopts dead holders, and those that they had adopted. No record changes meanwhile: every change sees all of it or nothing.
async fn adopt(holder: &mut Holder, context: Context<'_>) -> Result<(), RegistryError> {
    let mut tx = match holder.begin(context, SchemaLock::Exclusive).await {
        Ok(tx) => tx,
        // Others write all the time: the next call tries again.
        Err(RegistryError::Conflict) => return Ok(()),
        Err(error) => return Err(error),
    };
    let adopt = tx.sql.text(concat!(
        "WITH dead AS (SELECT h.number FROM {s}.holders h WHERE ",
        adoptable!(),
        " ORDER BY h.number LIMIT 64)
         UPDATE {s}.holders h SET adopted_by = $1, adopted_at = coalesce(h.adopted_at, ",
        now!(),
        ") WHERE h.number IN (SELECT number FROM dead) AND ",
        // A lease may have been renewed meanwhile.
        adoptable!(),
        " RETURNING h.number"
    ));
    let adopt_theirs =
        tx.sql.text("UPDATE {s}.holders h SET adopted_by = $1 WHERE h.adopted_by = ANY($2) AND NOT h.empty");
    let me = tx.me;
    let adopted = async {
        let query = sqlx::query_scalar::<_, i64>(adopt).persistent(false).bind(me);
        let adopted = query.fetch_all(tx.conn()).await?;
        // A second statement: the first one may have waited for a holder that then went on living.
        sqlx::query(adopt_theirs).persistent(false).bind(me).bind(adopted).execute(tx.conn()).await?;
        Ok::<_, Failure>(())
    }
    .await;
    holder.end(context, tx, adopted).await
}

/// One page of a dead holder.
struct Page {
    orphans: Vec<Orphan>,
    /// The cursor of the next page; none if this was the last one.
    next: Option<i64>,
    /// Sessions that other holders hold too, or that the dead one had released.
    shared: Vec<i64>,
    unreadable: Vec<i64>,
}

/// Reads a page, and writes only if the dead holder shares a session with others.
async fn read_page(tx: &mut Tx, dead: i64, progress: Progress, len: usize, max: usize) -> Result<Page, Failure> {
    let page = page(tx, dead, progress, len, max).await?;
    set_aside_unreadable(tx, &page.unreadable).await?;
    if page.shared.is_empty() {
        if page.unreadable.is_empty() {
            tx.skip_sync().await?;
        }
        return Ok(page);
    }
    let lock = tx.sql.text("SELECT number FROM {s}.sessions WHERE number = ANY($1) ORDER BY number FOR UPDATE");
    sqlx::query(lock).persistent(false).bind(&page.shared).execute(tx.conn()).await?;
    let delete = tx.sql.text(concat!(
        "DELETE FROM {s}.holds h WHERE ",
        of_sessions!("$2"),
        " AND h.holder = $1 AND (h.released
            OR (SELECT s.reason IS NULL FROM {s}.sessions s WHERE s.number = h.session LIMIT 1) IS NOT TRUE
            OR (SELECT true FROM {s}.holds o WHERE o.session = h.session AND o.holder <> $1 AND NOT o.released LIMIT 1))"
    ));
    let deleted = sqlx::query(delete).persistent(false).bind(dead).bind(&page.shared).execute(tx.conn()).await?;
    if deleted.rows_affected() == page.shared.len() as u64 {
        return Ok(page);
    }
    // One that is no longer shared is an orphan: the page is read again.
    Ok(Page { orphans: Vec::new(), next: Some(progress.cursor), ..page })
}

/// Looks at `len` entries at most, and returns `max` orphans at most.
async fn page(tx: &mut Tx, dead: i64, progress: Progress, len: usize, max: usize) -> Result<Page, Failure> {
    let read = tx.sql.text(concat!(
        // A hold of a session that has ended, or has no row, counts as a shared one: it is removed.
        "SELECT e.session, e.is_claim, e.released OR NOT e.is_claim AND (s.number IS NULL OR s.reason IS NOT NULL
                OR (SELECT true FROM {s}.holds o
                    WHERE o.session = e.session AND o.holder <> $1 AND NOT o.released LIMIT 1) IS NOT NULL) AS is_shared, ",
        end_columns!(),
        " FROM ((SELECT h.session, false AS is_claim, h.released FROM {s}.holds h
                WHERE h.holder = $1 AND h.session > $2 ORDER BY h.session LIMIT $3)
            UNION ALL (SELECT c.number, true, false FROM {s}.sessions c
                WHERE c.claimer = $1 AND c.number > $2 ORDER BY c.number LIMIT $3)
            ORDER BY 1 LIMIT $3) e
         LEFT JOIN LATERAL (SELECT * FROM {s}.sessions f WHERE f.number = e.session LIMIT 1) s ON true ORDER BY e.session"
    ));
    let limit = i64::try_from(len).unwrap_or(i64::MAX);
    let rows =
        sqlx::query(read).persistent(false).bind(dead).bind(progress.cursor).bind(limit).fetch_all(tx.conn()).await?;
    let mut page = Page { orphans: Vec::new(), next: None, shared: Vec::new(), unreadable: Vec::new() };
    // The next page begins behind the last entry that was seen, unless there can be no more.
    if rows.len() == len {
        page.next = rows.last().map(|row| row.try_get("session")).transpose()?;
    }
    for row in &rows {
        let number: i64 = row.try_get("session")?;
        if page.orphans.len() == max {
            page.next = Some(number - 1);
            break;
        }
        if row.try_get("is_shared")? {
            page.shared.push(number);
            continue;
        }
        match codec::ended(row, progress.adopted_at)? {
            Some((record, end, attempts)) => page.orphans.push(Orphan::new(record, end, attempts)),
            None => page.unreadable.push(number),
        }
    }
    Ok(page)
}

/// Removes the rows of adopted holders to which nothing refers any more. Returns their numbers.
pub(super) async fn remove_adopted(tx: &mut Tx, finished: &[i64]) -> Result<Vec<i64>, Failure> {
    if finished.is_empty() {
        return Ok(Vec::new());
    }
    let notices = tx.sql.text(
        "DELETE FROM {s}.notices n USING (SELECT holder, generation FROM {s}.notices WHERE holder = ANY($1) LIMIT $2) o
         WHERE n.holder = o.holder AND n.generation = o.generation",
    );
    sqlx::query(notices).persistent(false).bind(finished).bind(NOTICES_AT_ONCE).execute(tx.conn()).await?;
    // The row of a holder that has released its lease is of no use. Any other one tells its process that it was recovered.
    let remove = tx.sql.text(
        "WITH finished AS (SELECT o.number, o.released FROM {s}.holders o WHERE o.number = ANY($1) AND o.adopted_by = $2
                AND (SELECT true FROM {s}.holds WHERE holder = o.number LIMIT 1) IS NULL
                AND (SELECT true FROM {s}.sessions WHERE claimer = o.number LIMIT 1) IS NULL
                AND (SELECT true FROM {s}.notices WHERE holder = o.number LIMIT 1) IS NULL),
            deleted AS (DELETE FROM {s}.holders WHERE number IN (SELECT number FROM finished WHERE released)),
            emptied AS (UPDATE {s}.holders SET empty = true WHERE number IN (SELECT number FROM finished WHERE NOT released))
         SELECT number FROM finished",
    );
    let me = tx.me;
    Ok(sqlx::query_scalar(remove).persistent(false).bind(finished).bind(me).fetch_all(tx.conn()).await?)
}
