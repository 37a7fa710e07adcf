//! The tables, and the views for operators with `sqlite3`.

/// `tSes`: identifies the files of this crate.
pub(super) const APPLICATION_ID: i32 = 0x7453_6573;

/// The schema version that this crate reads and writes.
pub(super) const VERSION: i32 = 4;

/// The tables, indexes and views that every file must have.
pub(super) const OBJECTS: [&str; 13] = [
    "settings",
    "holders",
    "sessions",
    "active_by_id",
    "ends_by_claimer",
    "unclaimed_ends",
    "holds",
    "holds_by_holder",
    "notices",
    "notices_by_age",
    "active_sessions",
    "ending_sessions",
    "dead_letters",
];

/// Times are milliseconds since 1970. Numbers are never reused (AUTOINCREMENT): a row that is left after a manual
/// deletion must not refer to a later holder or session.
pub(super) const CREATE: &str = "
CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE holders (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    lease TEXT NOT NULL UNIQUE,
    process TEXT NOT NULL,
    since INTEGER NOT NULL,
    -- The holder that recovers it; NULL while it lives.
    adopted_by INTEGER
);
-- One row for each generation, from its start until its end is delivered.
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    generation TEXT NOT NULL UNIQUE,
    details TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    -- Counted by the holders that have released it.
    requests INTEGER NOT NULL DEFAULT 0,
    -- NULL while it is active, and if it was lost and nobody had to record that.
    reason TEXT,
    next TEXT,
    ended_at INTEGER,
    -- The holder that delivers the end; if that one is adopted, its adopter. NULL: any holder may claim it.
    claimer INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- 1 once the transaction hook has run for the end.
    committed INTEGER NOT NULL DEFAULT 0,
    -- 1 for a dead letter. It has no claimer.
    dead INTEGER NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX active_by_id ON sessions (id) WHERE reason IS NULL;
CREATE INDEX ends_by_claimer ON sessions (claimer) WHERE claimer IS NOT NULL;
CREATE INDEX unclaimed_ends ON sessions (dead) WHERE reason IS NOT NULL AND claimer IS NULL;
CREATE TABLE holds (
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    holder INTEGER NOT NULL,
    -- 1 after a release; the requests of this holder are then counted.
    released INTEGER NOT NULL,
    PRIMARY KEY (session, holder)
) WITHOUT ROWID;
CREATE INDEX holds_by_holder ON holds (holder);
CREATE TABLE notices (
    holder INTEGER NOT NULL,
    generation TEXT NOT NULL,
    id TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (holder, generation)
) WITHOUT ROWID;
CREATE INDEX notices_by_age ON notices (holder, ended_at);
CREATE VIEW active_sessions AS
SELECT s.id,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.started_at / 1000.0, 'unixepoch') AS since,
    (SELECT group_concat(o.process, ', ') FROM holds h JOIN holders o ON o.number = h.holder
        WHERE h.session = s.number AND NOT h.released AND o.adopted_by IS NULL) AS held_by,
    CASE WHEN json_valid(s.details) THEN json_extract(s.details, '$.sessionKey') END AS key,
    CASE WHEN json_valid(s.details) THEN json_extract(s.details, '$.agentId') END AS agent,
    s.generation,
    s.details
FROM sessions s
WHERE s.reason IS NULL AND EXISTS (SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
    WHERE h.session = s.number AND NOT h.released AND o.adopted_by IS NULL)
ORDER BY s.started_at, s.number;
CREATE VIEW ending_sessions AS
SELECT s.id,
    coalesce(s.reason, 'lost') AS reason,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.ended_at / 1000.0, 'unixepoch') AS ended_at,
    CASE WHEN s.reason IS NULL
        THEN (SELECT group_concat(DISTINCT a.process) FROM holds h JOIN holders o ON o.number = h.holder
            JOIN holders a ON a.number = o.adopted_by WHERE h.session = s.number AND NOT h.released)
        ELSE (SELECT coalesce(a.process, o.process) FROM holders o LEFT JOIN holders a ON a.number = o.adopted_by
            WHERE o.number = s.claimer)
    END AS claimed_by,
    s.attempts,
    s.requests,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.started_at / 1000.0, 'unixepoch') AS since,
    CASE WHEN json_valid(s.next) THEN json_extract(s.next, '$.sessionId') END AS next,
    s.generation,
    s.details
FROM sessions s
WHERE NOT s.dead AND (s.reason IS NOT NULL OR NOT EXISTS (SELECT 1 FROM holds h JOIN holders o ON o.number = h.holder
    WHERE h.session = s.number AND NOT h.released AND o.adopted_by IS NULL))
ORDER BY s.ended_at IS NULL, s.ended_at, s.number;
CREATE VIEW dead_letters AS
SELECT s.id,
    s.reason,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.ended_at / 1000.0, 'unixepoch') AS ended_at,
    s.error,
    s.attempts,
    s.requests,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.started_at / 1000.0, 'unixepoch') AS since,
    CASE WHEN json_valid(s.next) THEN json_extract(s.next, '$.sessionId') END AS next,
    s.generation,
    s.details
FROM sessions s WHERE s.dead ORDER BY s.number;
";
