//! Applies the changes of one call: a bounded number of statements, whatever the number of changes.
//!
//! No id and no generation occurs in two changes, so changes of one kind are applied together, over arrays. All rows that are
//! concerned are locked first, in the order of their numbers. From then on no other holder changes them.

use std::collections::HashSet;

use sqlx::Row;

use super::{
    super::{Applied, Change, EndRecord, HoldMode, Record},
    codec::{self, end_columns, json, record_columns, signed, text, to_ms, unsigned},
    error::Failure,
    holder::Tx,
    hook::HookCalls,
    sql::now,
};
use crate::session::{EndReason, GenerationId, SessionEnd, SessionId, SessionStart};

/// How often a hold meets a record that another holder creates at the same time.
const ROUNDS: usize = 4;

// The statements begin at the arrays and look each row up by an index: a plan that begins elsewhere would read everything that a
// holder holds. So what depends on a row is a subquery with LIMIT, which PostgreSQL does not turn into a join.

/// Whether a living holder has a hold on the session `s` that it has not released. A dead holder counts as living until it is
/// adopted.
macro_rules! is_held {
    ($s:literal) => {
        concat!(
            "(SELECT true FROM {s}.holds h WHERE h.session = ",
            $s,
            ".number AND NOT h.released
                AND (SELECT o.adopted_by IS NULL FROM {s}.holders o WHERE o.number = h.holder LIMIT 1) LIMIT 1) IS NOT NULL"
        )
    };
}

/// Whether the holder `$1` delivers the end in `s`: it has claimed it, or has adopted the one that did.
macro_rules! is_claimed {
    ($s:literal) => {
        concat!(
            "(",
            $s,
            ".claimer = $1 OR (SELECT o.adopted_by = $1 FROM {s}.holders o WHERE o.number = ",
            $s,
            ".claimer LIMIT 1) IS TRUE)"
        )
    };
}

/// Which holds are on the sessions of this array, or of the rows `u.number`. `session = ANY(..)` reads the whole table as long as
/// PostgreSQL has no statistics of it.
macro_rules! of_sessions {
    ($numbers:literal) => {
        of_sessions!(FROM concat!("unnest(", $numbers, "::bigint[]) AS u (number)"))
    };
    (FROM $rows:expr) => {
        concat!(
            "ctid = ANY (ARRAY (SELECT h.ctid FROM ",
            $rows,
            " CROSS JOIN LATERAL (SELECT o.ctid FROM {s}.holds o WHERE o.session = u.number OFFSET 0) h))"
        )
    };
}
pub(super) use of_sessions;

/// The generation of `u`, if the condition holds.
macro_rules! found {
    ($condition:literal) => {
        concat!("LATERAL (SELECT * FROM {s}.sessions f WHERE f.generation = u.generation ", $condition, " LIMIT 1) s")
    };
}

/// The state of the generation `s`, as [`State`].
macro_rules! state {
    ($s:literal) => {
        concat!(
            "CASE WHEN ",
            $s,
            ".reason IS NULL THEN CASE WHEN ",
            is_held!($s),
            " THEN 1 ELSE 0 END WHEN ",
            is_claimed!($s),
            " THEN 2 ELSE 0 END"
        )
    };
}

/// The active records of the id `u.id`, as a subquery. Each part has an index.
macro_rules! actives {
    () => {
        "(SELECT a.number, a.id, a.generation, a.details, a.started_at FROM {s}.sessions a
            WHERE a.id = u.id AND a.reason IS NULL AND NOT a.beside
          UNION ALL SELECT a.number, a.id, a.generation, a.details, a.started_at FROM {s}.sessions a
            WHERE a.id = u.id AND a.reason IS NULL AND a.beside)"
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    /// It has ended, and this holder delivers the end.
    Claimed,
    /// It has ended otherwise.
    Gone,
}

impl State {
    const fn from_number(number: i32) -> Self {
        match number {
            1 => Self::Active,
            2 => Self::Claimed,
            _ => Self::Gone,
        }
    }
}

/// The changes of one call, by their kinds. Each has its place in the call.
#[derive(Default)]
struct Group<'a> {
    holds: Vec<Hold<'a>>,
    updates: Vec<(usize, &'a Record)>,
    /// [`Release`](Change::Release), [`End`](Change::End), [`Keep`](Change::Keep) and [`Forget`](Change::Forget).
    leavings: Vec<Leaving<'a>>,
    /// Changes of ends that this holder has claimed.
    owed: Vec<(usize, GenerationId, Owed<'a>)>,
    acknowledged: Vec<String>,
}

struct Hold<'a> {
    place: usize,
    record: &'a Record,
    mode: HoldMode,
}

struct Leaving<'a> {
    place: usize,
    id: &'a SessionId,
    generation: GenerationId,
    kind: LeavingKind<'a>,
}

#[derive(Clone, Copy)]
enum LeavingKind<'a> {
    Release(&'a EndRecord),
    End(&'a EndRecord),
    Keep,
    Forget,
}

#[derive(Clone, Copy)]
enum Owed<'a> {
    Attempted(u32),
    Delivered,
    Commit,
    DeadLetter(&'a str),
}

impl<'a> Group<'a> {
    fn of(changes: &'a [Change]) -> Self {
        let mut group = Self::default();
        for (place, change) in changes.iter().enumerate() {
            let mut leave = |id, generation, kind| group.leavings.push(Leaving { place, id, generation, kind });
            match change {
                Change::Hold { record, mode } => group.holds.push(Hold { place, record, mode: *mode }),
                Change::Update(record) => group.updates.push((place, record)),
                Change::Release { id, generation, end } => leave(id, *generation, LeavingKind::Release(end)),
                Change::End { id, generation, end } => leave(id, *generation, LeavingKind::End(end)),
                Change::Keep { id, generation } => leave(id, *generation, LeavingKind::Keep),
                Change::Forget { id, generation } => leave(id, *generation, LeavingKind::Forget),
                Change::Attempted { generation, attempts } => {
                    group.owed.push((place, *generation, Owed::Attempted(*attempts)));
                }
                Change::Delivered { generation } => group.owed.push((place, *generation, Owed::Delivered)),
                Change::Commit { generation } => group.owed.push((place, *generation, Owed::Commit)),
                Change::DeadLetter { generation, error } => {
                    group.owed.push((place, *generation, Owed::DeadLetter(error)));
                }
                Change::Acknowledge { id: _, generation } => group.acknowledged.push(generation.to_string()),
            }
        }
        group
    }
}

pub(super) async fn apply(
    tx: &mut Tx,
    changes: &[Change],
    hook: Option<HookCalls<'_>>,
) -> Result<Vec<Applied>, Failure> {
    let group = Group::of(changes);
    let mut answers = vec![Applied::Ok; changes.len()];
    let locked = lock(tx, &group).await?;
    update(tx, &group.updates, &mut answers).await?;
    leave(tx, &group.leavings, &mut answers).await?;
    acknowledge(tx, &group.acknowledged).await?;
    let created = hold(tx, group.holds, locked, &mut answers).await?;
    if let Some(hook) = hook {
        let starts: Vec<_> = created.into_iter().map(start_of).collect();
        hook.starts(tx, &starts).await?;
    }
    let mut owed_changes = group.owed;
    if hook.is_none() {
        count_and_remove(tx, &owed_changes).await?;
        owed_changes.retain(|(.., kind)| matches!(kind, Owed::DeadLetter(_)));
    }
    owed(tx, &owed_changes, hook, &mut answers).await?;
    Ok(answers)
}

fn start_of(record: &Record) -> SessionStart {
    SessionStart::new(record.session.clone()).with_generation(record.generation)
}

fn end_of(record: Record, end: EndRecord) -> SessionEnd {
    let duration = end.ended_at.duration_since(record.started_at).unwrap_or_default();
    SessionEnd {
        session: record.session,
        reason: end.reason,
        next: end.next,
        started_at: record.started_at,
        duration,
        requests: end.requests,
        transcript_archived: None,
        generation: record.generation,
        deadline: None,
    }
}

/// Locks the rows of all generations, and the active rows of the ids of holds. Returns their numbers.
async fn lock(tx: &mut Tx, group: &Group<'_>) -> Result<HashSet<i64>, Failure> {
    let generations = (group.holds.iter().map(|hold| hold.record.generation))
        .chain(group.updates.iter().map(|(_, record)| record.generation))
        .chain(group.leavings.iter().map(|leaving| leaving.generation))
        .chain(group.owed.iter().map(|(_, generation, _)| *generation));
    lock_rows(tx, generations.map(|generation| generation.to_string()).collect(), ids(&group.holds)).await
}

fn ids(holds: &[Hold<'_>]) -> Vec<String> {
    holds.iter().map(|hold| hold.record.session.id.to_string()).collect()
}

async fn lock_rows(tx: &mut Tx, generations: Vec<String>, ids: Vec<String>) -> Result<HashSet<i64>, Failure> {
    if generations.is_empty() {
        return Ok(HashSet::new());
    }
    let lock = tx.sql.text(concat!(
        "SELECT number FROM {s}.sessions WHERE number = ANY (ARRAY (
            SELECT s.number FROM unnest($1::text[]) AS u (generation) CROSS JOIN ",
        found!(""),
        " UNION ALL SELECT o.number FROM unnest($2::text[]) AS u (id) CROSS JOIN LATERAL ",
        actives!(),
        " o)) ORDER BY number FOR UPDATE"
    ));
    let query = sqlx::query_scalar::<_, i64>(lock).persistent(false).bind(generations).bind(ids);
    Ok(query.fetch_all(tx.conn()).await?.into_iter().collect())
}

/// What a hold finds.
enum Found {
    /// The generation, or another active one of the id: this holder is added.
    Active(i64),
    /// A record has to be created. First the records in `lost` end, which only adopted holders hold.
    Nothing { lost: Vec<i64> },
    /// There is nothing to do.
    Answered,
    /// It has to look again.
    Again,
}

/// Returns the records that were created.
async fn hold<'a>(
    tx: &mut Tx,
    mut holds: Vec<Hold<'a>>,
    mut locked: HashSet<i64>,
    answers: &mut [Applied],
) -> Result<Vec<&'a Record>, Failure> {
    let mut created = Vec::new();
    for round in 0..ROUNDS {
        if holds.is_empty() {
            return Ok(created);
        }
        if round > 0 {
            // The rows that other holders have created meanwhile.
            let generations = holds.iter().map(|hold| hold.record.generation.to_string()).collect();
            locked.extend(lock_rows(tx, generations, ids(&holds)).await?);
        }
        let found = find(tx, &holds, answers).await?;
        let (mut added, mut changed, mut lost, mut missing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut again = Vec::new();
        for (hold, found) in holds.into_iter().zip(found) {
            match found {
                // Another holder has created it since the rows were locked, and may be ending it.
                Found::Active(number) if !locked.contains(&number) => again.push(hold),
                Found::Again => again.push(hold),
                Found::Active(number) => {
                    if answers[hold.place] == Applied::Created {
                        changed.push((number, hold.record));
                    }
                    added.push(number);
                }
                Found::Nothing { lost: some } => {
                    lost.extend(some);
                    missing.push(hold);
                }
                Found::Answered => {}
            }
        }
        add_holder(tx, &added).await?;
        replace_details(tx, &changed).await?;
        mark_lost(tx, &lost).await?;
        let (some, conflicting) = create(tx, missing, answers).await?;
        created.extend(some);
        holds = conflicting;
        holds.extend(again);
    }
    if holds.is_empty() { Ok(created) } else { Err(Failure::Conflict) }
}

/// Reads what there is of each hold, in the same order, and writes the answers that are known.
async fn find(tx: &mut Tx, holds: &[Hold<'_>], answers: &mut [Applied]) -> Result<Vec<Found>, Failure> {
    let find = tx.sql.text(concat!(
        "SELECT u.place, own.number AS own, ",
        state!("own"),
        " AS state,
            (SELECT true FROM {s}.notices n WHERE n.holder = $1 AND n.generation = u.generation LIMIT 1) IS NOT NULL AS noticed,
            other.*, lost.numbers
         FROM unnest($2::bigint[], $3::text[], $4::text[]) AS u (place, id, generation)
         LEFT JOIN LATERAL (SELECT * FROM {s}.sessions f WHERE f.generation = u.generation LIMIT 1) own ON true
         LEFT JOIN LATERAL (SELECT s.number, ",
        record_columns!(),
        " FROM ",
        actives!(),
        " s WHERE ",
        is_held!("s"),
        " ORDER BY s.number LIMIT 1) other ON own.number IS NULL
         LEFT JOIN LATERAL (SELECT array_agg(s.number) AS numbers FROM ",
        actives!(),
        " s WHERE NOT (",
        is_held!("s"),
        ")) lost ON own.number IS NULL ORDER BY u.place"
    ));
    let me = tx.me;
    let places: Vec<i64> = (0..).take(holds.len()).collect();
    let generations: Vec<_> = holds.iter().map(|hold| hold.record.generation.to_string()).collect();
    let query = sqlx::query(find).persistent(false).bind(me).bind(places).bind(ids(holds)).bind(generations);
    let rows = query.fetch_all(tx.conn()).await?;
    if rows.len() != holds.len() {
        return Err(Failure::Invalid("a query gave another number of rows".to_owned()));
    }
    let mut all = Vec::with_capacity(holds.len());
    for (hold, row) in holds.iter().zip(&rows) {
        let answer = &mut answers[hold.place];
        let own: Option<i64> = row.try_get("own")?;
        let other: Option<i64> = row.try_get("number")?;
        let found = if row.try_get("noticed")? {
            *answer = Applied::Gone;
            Found::Answered
        } else if let Some(own) = own {
            match State::from_number(row.try_get("state")?) {
                State::Active => {
                    *answer = Applied::Created;
                    Found::Active(own)
                }
                // This call repeats an earlier one.
                State::Claimed => {
                    *answer = Applied::Created;
                    Found::Answered
                }
                State::Gone => {
                    *answer = Applied::Gone;
                    Found::Answered
                }
            }
        } else if let Some(other) = other.filter(|_| hold.mode != HoldMode::Create) {
            let Some(record) = codec::record(row)? else {
                set_aside_unreadable(tx, &[other]).await?;
                all.push(Found::Again);
                continue;
            };
            *answer = Applied::Joined(record);
            Found::Active(other)
        } else if hold.mode == HoldMode::Join {
            *answer = Applied::NotFound;
            Found::Answered
        } else {
            Found::Nothing { lost: row.try_get::<Option<_>, _>("numbers")?.unwrap_or_default() }
        };
        all.push(found);
    }
    Ok(all)
}

async fn add_holder(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    let add = "INSERT INTO {s}.holds (session, holder) SELECT number, $1 FROM unnest($2::bigint[]) AS u (number) ORDER BY number
        ON CONFLICT (session, holder) DO UPDATE SET released = false";
    of_numbers(tx, add, numbers).await
}

async fn replace_details(tx: &mut Tx, changed: &[(i64, &Record)]) -> Result<(), Failure> {
    if changed.is_empty() {
        return Ok(());
    }
    let replace = tx.sql.text(
        "UPDATE {s}.sessions s SET details = u.details::json FROM unnest($1::bigint[], $2::text[]) AS u (number, details)
         WHERE s.number = u.number AND s.details::text <> u.details",
    );
    let numbers: Vec<_> = changed.iter().map(|(number, _)| *number).collect();
    let details = changed.iter().map(|(_, record)| json(&record.session)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(replace).persistent(false).bind(numbers).bind(details).execute(tx.conn()).await?;
    Ok(())
}

/// Ends sessions that only adopted holders hold. Each is claimed by one of them, so that its adopter finds it.
async fn mark_lost(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    let mark = concat!(
        "WITH deleted AS (DELETE FROM {s}.holds WHERE ",
        of_sessions!("$2"),
        ") UPDATE {s}.sessions s SET reason = 'lost', ended_at = ",
        now!(),
        ", claimer = coalesce((SELECT h.holder FROM {s}.holds h JOIN {s}.holders o ON o.number = h.holder
                WHERE h.session = s.number AND o.adopted_by IS NOT NULL ORDER BY h.released, o.number LIMIT 1), $1)
         WHERE s.number = ANY($2)"
    );
    of_numbers(tx, mark, numbers).await
}

/// Creates records. Returns them, and the holds that met a record of another holder.
async fn create<'a>(
    tx: &mut Tx,
    missing: Vec<Hold<'a>>,
    answers: &mut [Applied],
) -> Result<(Vec<&'a Record>, Vec<Hold<'a>>), Failure> {
    if missing.is_empty() {
        return Ok((Vec::new(), missing));
    }
    let create = tx.sql.text(
        "WITH created AS (
            INSERT INTO {s}.sessions (id, generation, details, started_at, beside)
            SELECT u.id, u.generation, u.details::json, u.started_at, u.beside
            FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::boolean[])
                AS u (id, generation, details, started_at, beside) ORDER BY u.id
            ON CONFLICT DO NOTHING RETURNING number, generation),
         held AS (INSERT INTO {s}.holds (session, holder) SELECT number, $1 FROM created)
         SELECT generation FROM created",
    );
    let me = tx.me;
    let details = missing.iter().map(|hold| json(&hold.record.session)).collect::<Result<Vec<_>, _>>()?;
    let query = sqlx::query_scalar::<_, String>(create)
        .persistent(false)
        .bind(me)
        .bind(ids(&missing))
        .bind(missing.iter().map(|hold| hold.record.generation.to_string()).collect::<Vec<_>>())
        .bind(details)
        .bind(missing.iter().map(|hold| to_ms(hold.record.started_at)).collect::<Vec<_>>())
        .bind(missing.iter().map(|hold| hold.mode == HoldMode::Create).collect::<Vec<_>>());
    let mut created = query.fetch_all(tx.conn()).await?;
    created.sort_unstable();
    let (created, conflicting): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|hold| created.binary_search(&hold.record.generation.to_string()).is_ok());
    for hold in &created {
        answers[hold.place] = Applied::Created;
    }
    Ok((created.into_iter().map(|hold| hold.record).collect(), conflicting))
}

async fn update(tx: &mut Tx, updates: &[(usize, &Record)], answers: &mut [Applied]) -> Result<(), Failure> {
    if updates.is_empty() {
        return Ok(());
    }
    let update = tx.sql.text(concat!(
        "WITH found AS MATERIALIZED (SELECT u.place, u.details, s.number
            FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[]) AS u (place, id, generation, details)
            CROSS JOIN ",
        found!("AND f.id = u.id AND f.reason IS NULL"),
        " WHERE (SELECT NOT h.released FROM {s}.holds h WHERE h.session = s.number AND h.holder = $1 LIMIT 1) IS TRUE)
         UPDATE {s}.sessions s SET details = f.details::json FROM found f WHERE s.number = f.number RETURNING f.place"
    ));
    let me = tx.me;
    let details = updates.iter().map(|(_, record)| json(&record.session)).collect::<Result<Vec<_>, _>>()?;
    let query = sqlx::query_scalar::<_, i64>(update)
        .persistent(false)
        .bind(me)
        .bind((0..).take(updates.len()).collect::<Vec<i64>>())
        .bind(updates.iter().map(|(_, record)| record.session.id.to_string()).collect::<Vec<_>>())
        .bind(updates.iter().map(|(_, record)| record.generation.to_string()).collect::<Vec<_>>())
        .bind(details);
    let updated = query.fetch_all(tx.conn()).await?;
    for (place, _) in updates {
        answers[*place] = Applied::Gone;
    }
    for n in updated {
        answers[updates[usize::try_from(n).unwrap_or_default()].0] = Applied::Ok;
    }
    Ok(())
}

/// An active session that ends now.
struct Ending<'a> {
    number: i64,
    requests: u64,
    end: &'a EndRecord,
}

async fn leave(tx: &mut Tx, leavings: &[Leaving<'_>], answers: &mut [Applied]) -> Result<(), Failure> {
    if leavings.is_empty() {
        return Ok(());
    }
    let read = tx.sql.text(concat!(
        "SELECT u.place, s.number, s.requests, ",
        state!("s"),
        " AS state, mine.released,
            (SELECT true FROM {s}.holds h WHERE h.session = s.number AND h.holder <> $1 AND NOT h.released
                AND (SELECT o.adopted_by IS NULL FROM {s}.holders o WHERE o.number = h.holder LIMIT 1) LIMIT 1) IS NOT NULL
                AS has_others
         FROM unnest($2::bigint[], $3::text[], $4::text[]) AS u (place, id, generation) CROSS JOIN ",
        found!("AND f.id = u.id"),
        " LEFT JOIN LATERAL (SELECT * FROM {s}.holds h WHERE h.session = s.number AND h.holder = $1 LIMIT 1) mine ON true"
    ));
    let me = tx.me;
    let query = sqlx::query(read)
        .persistent(false)
        .bind(me)
        .bind((0..).take(leavings.len()).collect::<Vec<i64>>())
        .bind(leavings.iter().map(|leaving| leaving.id.to_string()).collect::<Vec<_>>())
        .bind(leavings.iter().map(|leaving| leaving.generation.to_string()).collect::<Vec<_>>());
    let rows = query.fetch_all(tx.conn()).await?;
    for Leaving { place, kind, .. } in leavings {
        if matches!(kind, LeavingKind::Release(_) | LeavingKind::End(_)) {
            answers[*place] = Applied::Gone;
        }
    }
    let (mut ending, mut ended_for_all, mut released) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    for row in &rows {
        let n: i64 = row.try_get("place")?;
        let Leaving { place, kind, .. } = &leavings[usize::try_from(n).unwrap_or_default()];
        let (number, requests) = (row.try_get("number")?, unsigned(row.try_get("requests")?));
        let is_active = match State::from_number(row.try_get("state")?) {
            State::Active => true,
            // An earlier call of this holder has ended it.
            State::Claimed if matches!(kind, LeavingKind::Release(_) | LeavingKind::End(_)) => {
                answers[*place] = Applied::Owned { requests };
                false
            }
            State::Claimed | State::Gone => false,
        };
        if !is_active {
            continue;
        }
        let (mine, has_others): (Option<bool>, bool) = (row.try_get("released")?, row.try_get("has_others")?);
        match *kind {
            LeavingKind::Release(end) => {
                let requests = requests.saturating_add(end.requests);
                match mine {
                    None => {}
                    // A repeat: the requests are already counted.
                    Some(true) => answers[*place] = Applied::HeldElsewhere,
                    Some(false) if has_others => {
                        released.push((number, requests));
                        answers[*place] = Applied::HeldElsewhere;
                    }
                    Some(false) => {
                        ending.push(Ending { number, requests, end });
                        answers[*place] = Applied::Owned { requests };
                    }
                }
            }
            LeavingKind::End(end) => {
                let requests = requests.saturating_add(end.requests);
                ended_for_all.push(number);
                ending.push(Ending { number, requests, end });
                answers[*place] = Applied::Owned { requests };
            }
            LeavingKind::Keep => match mine {
                Some(false) if has_others => kept.push(number),
                Some(false) => removed.push(number),
                None | Some(true) => {}
            },
            LeavingKind::Forget => {
                ended_for_all.push(number);
                removed.push(number);
            }
        }
    }
    notify(tx, &ended_for_all).await?;
    end(tx, &ending).await?;
    release(tx, &released).await?;
    let keep = concat!("DELETE FROM {s}.holds WHERE holder = $1 AND ", of_sessions!("$2"));
    of_numbers(tx, keep, &kept).await?;
    remove(tx, &removed).await
}

/// A notice for each other living holder that has not released the session.
async fn notify(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    let notify = concat!(
        "INSERT INTO {s}.notices (holder, generation, id, ended_at) SELECT h.holder, s.generation, s.id, ",
        now!(),
        " FROM unnest($2::bigint[]) AS u (number)
         CROSS JOIN LATERAL (SELECT * FROM {s}.sessions f WHERE f.number = u.number LIMIT 1) s
         CROSS JOIN LATERAL (SELECT * FROM {s}.holds o WHERE o.session = u.number OFFSET 0) h
         WHERE h.holder <> $1 AND NOT h.released
            AND (SELECT o.adopted_by IS NULL FROM {s}.holders o WHERE o.number = h.holder LIMIT 1)
         ON CONFLICT DO NOTHING"
    );
    of_numbers(tx, notify, numbers).await
}

/// Records ends, which this holder claims.
async fn end(tx: &mut Tx, ending: &[Ending<'_>]) -> Result<(), Failure> {
    if ending.is_empty() {
        return Ok(());
    }
    let end = tx.sql.text(concat!(
        "WITH deleted AS (DELETE FROM {s}.holds WHERE ",
        of_sessions!("$2"),
        ") UPDATE {s}.sessions s
         SET requests = u.requests, reason = u.reason, next = u.next::json, ended_at = u.ended_at, claimer = $1
         FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[])
            AS u (number, requests, reason, next, ended_at)
         WHERE s.number = u.number"
    ));
    let me = tx.me;
    let next =
        ending.iter().map(|ending| ending.end.next.as_ref().map(json).transpose()).collect::<Result<Vec<_>, _>>()?;
    let query = sqlx::query(end)
        .persistent(false)
        .bind(me)
        .bind(ending.iter().map(|ending| ending.number).collect::<Vec<_>>())
        .bind(ending.iter().map(|ending| signed(ending.requests)).collect::<Vec<_>>())
        .bind(ending.iter().map(|ending| ending.end.reason.as_str().to_owned()).collect::<Vec<_>>())
        .bind(next)
        .bind(ending.iter().map(|ending| to_ms(ending.end.ended_at)).collect::<Vec<_>>());
    query.execute(tx.conn()).await?;
    Ok(())
}

/// Releases sessions that other holders still hold.
async fn release(tx: &mut Tx, released: &[(i64, u64)]) -> Result<(), Failure> {
    if released.is_empty() {
        return Ok(());
    }
    let release = tx.sql.text(concat!(
        "WITH released AS (UPDATE {s}.holds SET released = true WHERE holder = $1 AND ",
        of_sessions!("$2"),
        ") UPDATE {s}.sessions s SET requests = u.requests FROM unnest($2::bigint[], $3::bigint[]) AS u (number, requests)
         WHERE s.number = u.number"
    ));
    let me = tx.me;
    let query = sqlx::query(release)
        .persistent(false)
        .bind(me)
        .bind(released.iter().map(|(number, _)| *number).collect::<Vec<_>>())
        .bind(released.iter().map(|(_, requests)| signed(*requests)).collect::<Vec<_>>());
    query.execute(tx.conn()).await?;
    Ok(())
}

/// Whether the holder `$1` delivers the end of `s`, which has ended or is lost.
macro_rules! is_owed {
    () => {
        concat!(
            "CASE WHEN s.reason IS NOT NULL THEN ",
            is_claimed!("s"),
            " ELSE (SELECT bool_or(o.adopted_by = $1) AND bool_and(o.adopted_by IS NOT NULL) FROM {s}.holds h
                CROSS JOIN LATERAL (SELECT * FROM {s}.holders a WHERE a.number = h.holder LIMIT 1) o
                WHERE h.session = s.number AND NOT h.released) END"
        )
    };
}

/// As [`owed`], without a hook: counts the calls of some ends, and removes the records of others. One statement, because a
/// recovery consists of these.
async fn count_and_remove(tx: &mut Tx, owed: &[(usize, GenerationId, Owed<'_>)]) -> Result<(), Failure> {
    let attempts = |kind| match kind {
        Owed::Attempted(attempts) => Some(Some(i64::from(attempts))),
        Owed::Delivered => Some(None),
        Owed::Commit | Owed::DeadLetter(_) => None,
    };
    let changed = owed.iter().filter_map(|(_, generation, kind)| Some((generation.to_string(), attempts(*kind)?)));
    let (generations, attempts): (Vec<String>, Vec<Option<i64>>) = changed.unzip();
    if generations.is_empty() {
        return Ok(());
    }
    let statement = tx.sql.text(concat!(
        "WITH found AS MATERIALIZED (SELECT s.number, u.attempts
            FROM unnest($2::text[], $3::bigint[]) AS u (generation, attempts) CROSS JOIN ",
        found!(""),
        " WHERE ",
        is_owed!(),
        "), counted AS (UPDATE {s}.sessions s SET attempts = f.attempts FROM found f
            WHERE s.number = f.number AND f.attempts IS NOT NULL),
         released AS (DELETE FROM {s}.holds WHERE ",
        of_sessions!(FROM "(SELECT number FROM found WHERE attempts IS NULL) u"),
        ") DELETE FROM {s}.sessions WHERE number = ANY (ARRAY (SELECT number FROM found WHERE attempts IS NULL))"
    ));
    let me = tx.me;
    let query = sqlx::query(statement).persistent(false).bind(me).bind(generations).bind(attempts);
    query.execute(tx.conn()).await?;
    Ok(())
}

/// Changes of ends that this holder has claimed, or that are lost and that it delivers. The others are left alone.
async fn owed(
    tx: &mut Tx,
    owed: &[(usize, GenerationId, Owed<'_>)],
    hook: Option<HookCalls<'_>>,
    answers: &mut [Applied],
) -> Result<(), Failure> {
    const READ: &str = concat!(
        "SELECT u.place, s.number, s.committed
         FROM unnest($2::bigint[], $3::text[]) AS u (place, generation) CROSS JOIN ",
        found!(""),
        " WHERE ",
        is_owed!()
    );
    const READ_ENDS: &str = concat!(
        "SELECT u.place, s.number, s.committed, (SELECT min(o.adopted_at) FROM {s}.holds h JOIN {s}.holders o
                ON o.number = h.holder WHERE s.reason IS NULL AND h.session = s.number) AS lost_at, ",
        end_columns!(),
        " FROM unnest($2::bigint[], $3::text[]) AS u (place, generation) CROSS JOIN ",
        found!(""),
        " WHERE ",
        is_owed!(),
        " ORDER BY s.number"
    );
    if owed.is_empty() {
        return Ok(());
    }
    let read = tx.sql.text(if hook.is_some() { READ_ENDS } else { READ });
    let me = tx.me;
    let query = sqlx::query(read)
        .persistent(false)
        .bind(me)
        .bind((0..).take(owed.len()).collect::<Vec<i64>>())
        .bind(owed.iter().map(|(_, generation, _)| generation.to_string()).collect::<Vec<_>>());
    let rows = query.fetch_all(tx.conn()).await?;
    let (mut attempted, mut dead, mut delivered, mut committed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Ends for which the hook is called first.
    let (mut ends, mut of_ends) = (Vec::new(), Vec::new());
    for row in &rows {
        let n: i64 = row.try_get("place")?;
        let number: i64 = row.try_get("number")?;
        let (place, _, kind) = owed[usize::try_from(n).unwrap_or_default()];
        let is_removed = match kind {
            Owed::Attempted(attempts) => {
                attempted.push((number, attempts));
                continue;
            }
            Owed::DeadLetter(error) => {
                dead.push((number, error));
                continue;
            }
            Owed::Delivered => true,
            Owed::Commit => false,
        };
        if hook.is_none() || row.try_get("committed")? {
            if is_removed {
                delivered.push(number);
            }
            continue;
        }
        let lost_at = row.try_get::<Option<i64>, _>("lost_at")?.unwrap_or_default();
        match codec::ended(row, lost_at)? {
            Some((record, end, _)) => {
                ends.push(end_of(record, end));
                of_ends.push((place, number, is_removed));
            }
            None => answers[place] = Applied::Failed("this record cannot be read".to_owned()),
        }
    }
    if let Some(hook) = hook {
        let results = hook.ends(tx, &mut ends).await?;
        for ((place, number, is_removed), result) in of_ends.into_iter().zip(results) {
            match result {
                Ok(()) if is_removed => delivered.push(number),
                Ok(()) => committed.push(number),
                Err(error) => answers[place] = Applied::Failed(error),
            }
        }
    }
    attempt(tx, &attempted).await?;
    make_dead_letters(tx, &dead).await?;
    if !committed.is_empty() {
        let mark = tx.sql.text("UPDATE {s}.sessions SET committed = true WHERE number = ANY($1)");
        sqlx::query(mark).persistent(false).bind(committed).execute(tx.conn()).await?;
    }
    remove(tx, &delivered).await
}

async fn attempt(tx: &mut Tx, attempted: &[(i64, u32)]) -> Result<(), Failure> {
    if attempted.is_empty() {
        return Ok(());
    }
    let attempt = tx.sql.text(
        "UPDATE {s}.sessions s SET attempts = u.attempts FROM unnest($1::bigint[], $2::bigint[]) AS u (number, attempts)
         WHERE s.number = u.number",
    );
    let query = sqlx::query(attempt)
        .persistent(false)
        .bind(attempted.iter().map(|(number, _)| *number).collect::<Vec<_>>())
        .bind(attempted.iter().map(|(_, attempts)| i64::from(*attempts)).collect::<Vec<_>>());
    query.execute(tx.conn()).await?;
    Ok(())
}

async fn make_dead_letters(tx: &mut Tx, dead: &[(i64, &str)]) -> Result<(), Failure> {
    if dead.is_empty() {
        return Ok(());
    }
    let make = tx.sql.text(concat!(
        "WITH deleted AS (DELETE FROM {s}.holds WHERE ",
        of_sessions!("$1"),
        ") UPDATE {s}.sessions s SET dead = true, error = u.error, claimer = NULL, reason = coalesce(s.reason, $3),
            ended_at = coalesce(s.ended_at, ",
        now!(),
        ") FROM unnest($1::bigint[], $2::text[]) AS u (number, error) WHERE s.number = u.number"
    ));
    let query = sqlx::query(make)
        .persistent(false)
        .bind(dead.iter().map(|(number, _)| *number).collect::<Vec<_>>())
        .bind(dead.iter().map(|(_, error)| text(error)).collect::<Vec<_>>())
        .bind(EndReason::Lost.as_str());
    query.execute(tx.conn()).await?;
    Ok(())
}

/// Makes rows that cannot be read dead letters: they block no other row, and an operator sees them.
pub(super) async fn set_aside_unreadable(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    if numbers.is_empty() {
        return Ok(());
    }
    tracing::error!(
        name: "session-registry-unreadable",
        count = numbers.len(),
        "records of the session registry cannot be read, so their session_end cannot be delivered; they stay in the view \
         `dead_letters`",
    );
    let dead: Vec<_> = numbers.iter().map(|number| (*number, "this record cannot be read")).collect();
    make_dead_letters(tx, &dead).await
}

async fn acknowledge(tx: &mut Tx, generations: &[String]) -> Result<(), Failure> {
    if generations.is_empty() {
        return Ok(());
    }
    let acknowledge = tx.sql.text("DELETE FROM {s}.notices WHERE holder = $1 AND generation = ANY($2)");
    let me = tx.me;
    sqlx::query(acknowledge).persistent(false).bind(me).bind(generations).execute(tx.conn()).await?;
    Ok(())
}

/// Removes records and their holds.
async fn remove(tx: &mut Tx, numbers: &[i64]) -> Result<(), Failure> {
    if numbers.is_empty() {
        return Ok(());
    }
    let remove = tx.sql.text(concat!(
        "WITH deleted AS (DELETE FROM {s}.holds WHERE ",
        of_sessions!("$1"),
        ") DELETE FROM {s}.sessions WHERE number = ANY($1)"
    ));
    sqlx::query(remove).persistent(false).bind(numbers).execute(tx.conn()).await?;
    Ok(())
}

/// Runs a statement whose `$1` is this holder and whose `$2` are numbers of sessions.
async fn of_numbers(tx: &mut Tx, statement: &'static str, numbers: &[i64]) -> Result<(), Failure> {
    if numbers.is_empty() {
        return Ok(());
    }
    let me = tx.me;
    let statement = tx.sql.text(statement);
    sqlx::query(statement).persistent(false).bind(me).bind(numbers).execute(tx.conn()).await?;
    Ok(())
}
