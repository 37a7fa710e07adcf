//! Dead letters, for an operator.

use rusqlite::{Result, Transaction};

use super::codec::{self, Read};
use crate::{registry::DeadLetter, session::GenerationId};

/// The most dead letters that one transaction reads or changes.
pub(super) const PAGE: usize = 500;

/// Those of one transaction.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Where the next page begins; none after the last one.
    pub(super) next: Option<i64>,
}

/// In the order of the sessions' numbers. One that cannot be read is left out.
pub(super) fn list(tx: &Transaction<'_>, after: i64, limit: usize) -> Result<Page<DeadLetter>> {
    let limit = limit.min(PAGE);
    let sql = format!(
        "SELECT {}, error, number FROM sessions
         WHERE reason IS NOT NULL AND claimer IS NULL AND dead = 1 AND number > ?1 ORDER BY number LIMIT ?2",
        codec::END
    );
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query((after, limit_of(limit)))?;
    let (mut items, mut last, mut count) = (Vec::new(), after, 0);
    while let Some(row) = rows.next()? {
        if let Read::Readable((record, end, attempts)) = codec::ended(row)? {
            let error = row.get_ref(9)?.as_str_or_null().ok().flatten().unwrap_or_default().to_owned();
            items.push(DeadLetter::new(record, end, attempts, error));
        }
        last = row.get(10)?;
        count += 1;
    }
    Ok(Page { items, next: (count == limit).then_some(last) })
}

/// Any holder may claim it from now on. False if there is no such dead letter.
pub(super) fn redeliver(tx: &Transaction<'_>, generation: GenerationId) -> Result<bool> {
    let sql = "UPDATE sessions SET dead = 0, attempts = 0, error = NULL WHERE generation = ?1 AND dead = 1";
    Ok(tx.prepare_cached(sql)?.execute([generation.to_string()])? > 0)
}

/// As [`redeliver`], for the dead letters of one page.
pub(super) fn redeliver_after(tx: &Transaction<'_>, after: i64) -> Result<Page<()>> {
    let sql = "SELECT number FROM sessions
         WHERE reason IS NOT NULL AND claimer IS NULL AND dead = 1 AND number > ?1 ORDER BY number LIMIT ?2";
    let numbers: Vec<i64> =
        tx.prepare_cached(sql)?.query_map((after, limit_of(PAGE)), |row| row.get(0))?.collect::<Result<_>>()?;
    let sql = "UPDATE sessions SET dead = 0, attempts = 0, error = NULL WHERE number = ?1";
    let mut update = tx.prepare_cached(sql)?;
    for n in &numbers {
        update.execute([n])?;
    }
    let next = if numbers.len() == PAGE { numbers.last().copied() } else { None };
    Ok(Page { items: vec![(); numbers.len()], next })
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
