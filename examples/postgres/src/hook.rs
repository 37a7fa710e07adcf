//! The table of chats, and the hook that writes it.

use sqlx::PgConnection;
use tower_session_end::{BoxError, SessionEnd, SessionStart, registry::PostgresTransactionHook};

/// One row for each generation of a session: a session that starts again after its end gets a second row.
///
/// The times are those of the transactions. [`SessionEnd::started_at`] and [`SessionEnd::duration`] have those of the processes.
/// `ends` is here to show that no end is written twice. An application does not need it.
pub(crate) const TABLE: &str = "
    CREATE TABLE chats (
        generation text PRIMARY KEY,
        id text NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        ended_at timestamptz,
        reason text,
        messages int NOT NULL DEFAULT 0,
        ends int NOT NULL DEFAULT 0
    );
    CREATE INDEX chats_by_id ON chats (id)";

/// Writes in the transactions of the registry: a row commits with the record of its session, and its end with the removal of that
/// record. So no statement here has to expect that it is repeated.
pub(crate) struct Chats;

impl PostgresTransactionHook for Chats {
    async fn session_start(&self, transaction: &mut PgConnection, start: &SessionStart) -> Result<(), BoxError> {
        sqlx::query("INSERT INTO chats (generation, id) VALUES ($1, $2)")
            .bind(start.generation.to_string())
            .bind(start.session.id.as_str())
            .execute(transaction)
            .await?;
        Ok(())
    }

    /// One statement for all ends: other changes of the registry wait for this transaction.
    async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
        let generations: Vec<_> = ends.iter().map(|end| end.generation.to_string()).collect();
        let reasons: Vec<_> = ends.iter().map(|end| end.reason.as_str().to_owned()).collect();
        sqlx::query(
            "UPDATE chats SET ends = ends + 1, reason = ended.reason, ended_at = now()
             FROM unnest($1::text[], $2::text[]) AS ended (generation, reason)
             WHERE chats.generation = ended.generation",
        )
        .bind(generations)
        .bind(reasons)
        .execute(transaction)
        .await?;
        Ok(())
    }
}
