//! The tables, and the views for operators with `sqlite3`.

/// `tSes`: identifies the files of this crate.
pub(super) const APPLICATION_ID: i32 = 0x7453_6573;

/// The schema version that this crate reads and writes.
pub(super) const VERSION: i32 = 2;

/// The tables, indexes and views that every file must have.
pub(super) const OBJECTS: [&str; 8] =
    ["holders", "sessions", "holds", "holds_by_holder", "ends", "ends_by_holder", "active_sessions", "ending_sessions"];

/// Times are milliseconds since 1970. Numbers are never reused (AUTOINCREMENT): a row that is left after a manual
/// deletion must not refer to a later holder or session.
pub(super) const CREATE: &str = "
CREATE TABLE holders (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    lease TEXT NOT NULL UNIQUE,
    process TEXT NOT NULL,
    since INTEGER NOT NULL
);
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    generation TEXT NOT NULL,
    details TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    -- Counted by the holders that have released it.
    requests INTEGER NOT NULL
);
CREATE TABLE holds (
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    holder INTEGER NOT NULL,
    -- 1 after a release; the requests of this holder are then counted.
    released INTEGER NOT NULL,
    PRIMARY KEY (session, holder)
) WITHOUT ROWID;
CREATE INDEX holds_by_holder ON holds (holder);
CREATE TABLE ends (
    generation TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    details TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    reason TEXT NOT NULL,
    next TEXT,
    ended_at INTEGER NOT NULL,
    -- The holder that delivers it; 0 if it cannot be read.
    holder INTEGER NOT NULL,
    attempts INTEGER NOT NULL
);
CREATE INDEX ends_by_holder ON ends (holder);
CREATE VIEW active_sessions AS
SELECT s.id,
    strftime('%Y-%m-%d %H:%M:%f UTC', s.started_at / 1000.0, 'unixepoch') AS since,
    (SELECT group_concat(coalesce(o.process, '?'), ', ') FROM holds h LEFT JOIN holders o ON o.number = h.holder
        WHERE h.session = s.number AND NOT h.released) AS held_by,
    CASE WHEN json_valid(s.details) THEN json_extract(s.details, '$.sessionKey') END AS key,
    CASE WHEN json_valid(s.details) THEN json_extract(s.details, '$.agentId') END AS agent,
    s.generation,
    s.details
FROM sessions s ORDER BY s.started_at, s.number;
CREATE VIEW ending_sessions AS
SELECT e.id,
    e.reason,
    strftime('%Y-%m-%d %H:%M:%f UTC', e.ended_at / 1000.0, 'unixepoch') AS ended_at,
    CASE e.holder WHEN 0 THEN 'nobody: unreadable' ELSE coalesce(o.process, '?') END AS claimed_by,
    e.attempts,
    e.requests,
    strftime('%Y-%m-%d %H:%M:%f UTC', e.started_at / 1000.0, 'unixepoch') AS since,
    CASE WHEN json_valid(e.next) THEN json_extract(e.next, '$.sessionId') END AS next,
    e.generation,
    e.details
FROM ends e LEFT JOIN holders o ON o.number = e.holder ORDER BY e.ended_at, e.generation;
";
