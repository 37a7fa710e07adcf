//! The schema: its migrations, and the views for operators with `psql`.

use sqlx::{Connection, Executor, PgConnection};

use super::{error::Failure, sql::Sql};

/// One text for each version of the schema, in order. A text that was released never changes.
const MIGRATIONS: [&str; 1] = [V1];

/// The version that this crate reads and writes.
pub(super) const VERSION: i32 = 1;

/// Times are milliseconds since 1970. Numbers are never reused. Texts are compared by their bytes, so that an upgrade of the
/// system's locales breaks no index. A session id may be longer than a B-tree permits, so its index is a hash index.
///
/// `beside`: the record was created although the id had another active one, or without asking. Of the other active records there
/// is one for each id, which the exclusion constraint sees to.
const V1: &str = r#"
CREATE TABLE {s}.store (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    incarnation text NOT NULL,
    deployment text,
    -- No lease expires before this time: the server was down, and each holder gets time to renew its lease.
    grace_until bigint NOT NULL DEFAULT 0
);
CREATE TABLE {s}.holders (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    process text NOT NULL,
    since bigint NOT NULL,
    expires_at bigint NOT NULL,
    renewals bigint NOT NULL DEFAULT 0,
    released boolean NOT NULL DEFAULT false,
    -- The holder that recovers it; NULL while it lives.
    adopted_by bigint,
    adopted_at bigint,
    -- Nothing refers to this adopted holder any more. The row is kept for a week: if the process is alive after all, it learns
    -- that it was recovered.
    empty boolean NOT NULL DEFAULT false
);
-- One row for each generation, from its start until its end is delivered.
CREATE TABLE {s}.sessions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL,
    generation text COLLATE "C" NOT NULL UNIQUE,
    details json NOT NULL,
    started_at bigint NOT NULL,
    beside boolean NOT NULL,
    -- Counted by the holders that have released it.
    requests bigint NOT NULL DEFAULT 0,
    -- NULL while it is active, and if it was lost and no holder had to record that.
    reason text,
    next json,
    ended_at bigint,
    -- The holder that delivers the end; if that one is adopted, its adopter.
    claimer bigint,
    attempts bigint NOT NULL DEFAULT 0,
    -- The transaction hook has run; other hooks are still owed.
    committed boolean NOT NULL DEFAULT false,
    -- A dead letter. It has no claimer.
    dead boolean NOT NULL DEFAULT false,
    error text,
    EXCLUDE USING hash (id WITH =) WHERE (reason IS NULL AND NOT beside)
);
CREATE INDEX active_beside ON {s}.sessions USING hash (id) WHERE reason IS NULL AND beside;
CREATE INDEX ends_by_claimer ON {s}.sessions (claimer, number) WHERE claimer IS NOT NULL;
CREATE INDEX dead_by_number ON {s}.sessions (number) WHERE dead;
CREATE TABLE {s}.holds (
    session bigint NOT NULL,
    holder bigint NOT NULL,
    -- True after a release; the requests of this holder are then counted.
    released boolean NOT NULL DEFAULT false,
    PRIMARY KEY (session, holder)
);
CREATE INDEX holds_by_holder ON {s}.holds (holder, session);
CREATE TABLE {s}.notices (
    holder bigint NOT NULL,
    generation text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    ended_at bigint NOT NULL,
    PRIMARY KEY (holder, generation)
);
CREATE INDEX notices_by_age ON {s}.notices (holder, ended_at);

-- A time that PostgreSQL cannot show is NULL in the views, and so is a text with a NUL character.
CREATE FUNCTION {s}.shown_time(ms bigint) RETURNS timestamptz LANGUAGE sql STABLE AS
    $$ SELECT CASE WHEN ms BETWEEN -62135596800000 AND 253402300799999 THEN to_timestamp(ms / 1000.0) END $$;
CREATE FUNCTION {s}.shown_field(object json, field text) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN position('\u0000' IN object::text) = 0 THEN object ->> field END $$;
CREATE VIEW {s}.active_sessions AS
SELECT s.id, {s}.shown_time(s.started_at) AS since, l.held_by, {s}.shown_field(s.details, 'sessionKey') AS key,
    {s}.shown_field(s.details, 'agentId') AS agent, s.generation, s.details
FROM {s}.sessions s
CROSS JOIN LATERAL (SELECT string_agg(o.process, ', ' ORDER BY o.number) AS held_by
    FROM {s}.holds h JOIN {s}.holders o ON o.number = h.holder
    WHERE h.session = s.number AND NOT h.released AND o.adopted_by IS NULL) l
WHERE s.reason IS NULL AND l.held_by IS NOT NULL
ORDER BY s.started_at, s.number;
CREATE VIEW {s}.ending_sessions AS
SELECT s.id, coalesce(s.reason, 'lost') AS reason, {s}.shown_time(s.ended_at) AS ended_at,
    CASE WHEN s.reason IS NULL
        THEN (SELECT string_agg(DISTINCT a.process, ', ') FROM {s}.holds h JOIN {s}.holders o ON o.number = h.holder
            JOIN {s}.holders a ON a.number = o.adopted_by WHERE h.session = s.number AND NOT h.released)
        ELSE (SELECT coalesce(a.process, o.process) FROM {s}.holders o LEFT JOIN {s}.holders a ON a.number = o.adopted_by
            WHERE o.number = s.claimer)
    END AS claimed_by,
    s.attempts, s.committed, s.requests, {s}.shown_time(s.started_at) AS since,
    {s}.shown_field(s.next, 'sessionId') AS next, s.generation, s.details
FROM {s}.sessions s
WHERE NOT s.dead AND (s.reason IS NOT NULL OR NOT EXISTS
    (SELECT 1 FROM {s}.holds h JOIN {s}.holders o ON o.number = h.holder
        WHERE h.session = s.number AND NOT h.released AND o.adopted_by IS NULL))
ORDER BY s.ended_at NULLS LAST, s.number;
CREATE VIEW {s}.dead_letters AS
SELECT s.id, s.reason, {s}.shown_time(s.ended_at) AS ended_at, s.error, s.attempts, s.committed, s.requests,
    {s}.shown_time(s.started_at) AS since, {s}.shown_field(s.next, 'sessionId') AS next, s.generation, s.details
FROM {s}.sessions s WHERE s.dead ORDER BY s.number;
"#;

/// Creates or migrates the schema if that is necessary. Several processes may do it at once: one does, and the others wait.
pub(super) async fn prepare(conn: &mut PgConnection, sql: Sql, name: &str) -> Result<(), Failure> {
    // Each query is in a transaction: a proxy keeps the connection to the server for so long only.
    let mut tx = conn.begin().await?;
    // A snapshot that is older than the lock would not show what another process has created.
    run(&mut tx, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
    if version(&mut tx, sql, name).await? == Some(VERSION) {
        tx.commit().await?;
        return Ok(());
    }
    // A migration of a large table takes its time.
    let lock = format!("SELECT pg_advisory_xact_lock({} # 1)", sql.lock_number());
    run(&mut tx, "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'").await?;
    sqlx::query(sql.made(lock)).persistent(false).execute(&mut *tx).await?;
    let before = version(&mut tx, sql, name).await?;
    if before.is_none() {
        // `IF NOT EXISTS` asks for the right to create one first.
        if !schema_exists(&mut tx, name).await? {
            run(&mut tx, sql.text("CREATE SCHEMA {s}")).await?;
        }
        let table =
            "CREATE TABLE {s}.migrations (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";
        run(&mut tx, sql.text(table)).await?;
    }
    for (version, migration) in (1..).zip(MIGRATIONS).skip(before.unwrap_or(0).try_into().unwrap_or(usize::MAX)) {
        run(&mut tx, sql.text(migration)).await?;
        let applied = sql.text("INSERT INTO {s}.migrations (version) VALUES ($1)");
        sqlx::query(applied).persistent(false).bind(version).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Runs statements without parameters.
async fn run(conn: &mut PgConnection, statements: &'static str) -> Result<(), Failure> {
    conn.execute(statements).await?;
    Ok(())
}

/// The version of the tables, or none if there are none.
async fn version(conn: &mut PgConnection, sql: Sql, name: &str) -> Result<Option<i32>, Failure> {
    let exists =
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'migrations')";
    if !sqlx::query_scalar::<_, bool>(exists).persistent(false).bind(name).fetch_one(&mut *conn).await? {
        return Ok(None);
    }
    let newest = sql.text("SELECT max(version) FROM {s}.migrations");
    let version: Option<i32> = sqlx::query_scalar(newest).persistent(false).fetch_one(&mut *conn).await?;
    match version {
        Some(version) if version > VERSION => Err(Failure::Invalid(format!(
            "its version is {version}, and this version of tower-session-end knows {VERSION} at most: update this process, or \
             set another `schema`"
        ))),
        version => Ok(version),
    }
}

async fn schema_exists(conn: &mut PgConnection, name: &str) -> Result<bool, Failure> {
    let exists = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    Ok(sqlx::query_scalar(exists).persistent(false).bind(name).fetch_one(conn).await?)
}
