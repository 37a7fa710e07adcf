//! Dead letters, for an operator.

use sqlx::Row;

use super::{
    super::DeadLetter,
    codec::{self, end_columns},
    error::Failure,
    holder::{Tx, random},
    sql::now,
};
use crate::session::GenerationId;

/// The most dead letters that one transaction reads or changes.
const PAGE: usize = 500;

/// Those of one transaction.
pub(super) struct Page<T> {
    pub(super) items: T,
    /// Where the next page begins; none after the last one.
    pub(super) next: Option<i64>,
}

/// In the order of the sessions' numbers. One that cannot be read is left out.
pub(super) async fn list(tx: &mut Tx, after: i64, limit: usize) -> Result<Page<Vec<DeadLetter>>, Failure> {
    let list = tx.sql.text(concat!(
        "SELECT s.number, s.error, ",
        end_columns!(),
        " FROM {s}.sessions s WHERE s.dead AND s.number > $1 ORDER BY s.number LIMIT $2"
    ));
    let limit = limit.min(PAGE);
    let limit_of = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = sqlx::query(list).persistent(false).bind(after).bind(limit_of).fetch_all(tx.conn()).await?;
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some((record, end, attempts)) = codec::ended(row, 0)? {
            let error: Option<String> = row.try_get("error")?;
            items.push(DeadLetter::new(record, end, attempts, error.unwrap_or_default()));
        }
    }
    let last = rows.last().map(|row| row.try_get("number")).transpose()?;
    Ok(Page { items, next: last.filter(|_| rows.len() == limit) })
}

/// Makes a dead letter an orphan again. False if there is no such dead letter.
pub(super) async fn redeliver(tx: &mut Tx, generation: GenerationId) -> Result<bool, Failure> {
    let find = tx.sql.text("SELECT number FROM {s}.sessions WHERE generation = $1 AND dead FOR UPDATE");
    let number: Option<i64> =
        sqlx::query_scalar(find).persistent(false).bind(generation.to_string()).fetch_optional(tx.conn()).await?;
    make_orphans(tx, number.as_slice()).await?;
    Ok(number.is_some())
}

/// As [`redeliver`], for the dead letters of one page. Returns their number.
pub(super) async fn redeliver_after(tx: &mut Tx, after: i64) -> Result<Page<u64>, Failure> {
    let find =
        tx.sql.text("SELECT number FROM {s}.sessions WHERE dead AND number > $1 ORDER BY number LIMIT $2 FOR UPDATE");
    let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let numbers: Vec<i64> =
        sqlx::query_scalar(find).persistent(false).bind(after).bind(limit).fetch_all(tx.conn()).await?;
    make_orphans(tx, &numbers).await?;
    let next = if numbers.len() == PAGE { numbers.last().copied() } else { None };
    Ok(Page { items: numbers.len() as u64, next })
}

/// The ends are claimed by a holder that never lived, which waits to be adopted: so each has a claimer at any time.
async fn make_orphans(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    if numbers.is_empty() {
        return Ok(());
    }
    const WAITING: &str =
        "SELECT number FROM {s}.holders WHERE released AND adopted_by IS NULL AND name LIKE 'redelivered:%'
        ORDER BY number LIMIT 1";
    let waiting = tx.sql.text(WAITING);
    let create = tx.sql.text(concat!(
        "INSERT INTO {s}.holders (name, process, since, expires_at, released) VALUES ('redelivered:' || $1, 'redelivered', ",
        now!(),
        ", 0, true) RETURNING number"
    ));
    let claimer: i64 = match sqlx::query_scalar(waiting).persistent(false).fetch_optional(tx.conn()).await? {
        Some(waiting) => waiting,
        None => sqlx::query_scalar(create).persistent(false).bind(random()).fetch_one(tx.conn()).await?,
    };
    let claim = tx
        .sql
        .text("UPDATE {s}.sessions SET dead = false, attempts = 0, error = NULL, claimer = $1 WHERE number = ANY($2)");
    sqlx::query(claim).persistent(false).bind(claimer).bind(numbers).execute(tx.conn()).await?;
    Ok(())
}
