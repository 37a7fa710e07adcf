//! One replica: an axum application that keeps its chats in PostgreSQL.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode},
    routing::post,
};
use crash::Error;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tower_session_end::{ActiveSessions, EndReason, SessionId, registry::PostgresRegistry, signal};
use uuid::Uuid;

use crate::hook::Chats;

/// How long a replica may be silent until the others end its chats. The default is 10 s.
const LEASE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM. Prints the report of the recovery, then the address, and at the end the report of the shutdown.
pub(crate) async fn serve(url: &str) -> Result<(), Error> {
    let pool = PgPoolOptions::new().max_connections(5).connect(url).await?;
    // A pool of its own: at a shutdown, the ends do not wait for the requests that use up the other one.
    let for_registry = PgPoolOptions::new().max_connections(2).connect(url).await?;
    let registry =
        PostgresRegistry::builder(for_registry).lease(LEASE).transaction_hook("chats", Chats).connect().await?;
    let sessions = ActiveSessions::builder().registry(registry).drain_timeout(Duration::from_secs(10)).build()?;

    // Before serving, delivers the ends that a killed process left behind.
    println!("{}", sessions.recover().await);

    // Registered before the address is printed, so that no signal is missed.
    let stop = sessions.shutdown_on(signal::terminate());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app(&sessions, pool)).with_graceful_shutdown(stop);
    println!("{}", sessions.finish(server).await.into_result()?);
    Ok(())
}

fn app(sessions: &ActiveSessions, pool: PgPool) -> Router {
    Router::new()
        .route("/open", post(open))
        .route("/say", post(say))
        .route("/end", post(async |_: SessionId| [(HeaderName::from_static("x-session-end"), "deleted")]))
        .layer(sessions.layer())
        .with_state(pool)
}

type IdHeader = [(HeaderName, String); 1];

fn id_header(id: String) -> IdHeader {
    [(HeaderName::from_static("x-session-id"), id)]
}

/// Starts a chat. The hook inserts its row.
async fn open(sessions: ActiveSessions) -> Result<IdHeader, StatusCode> {
    let id = Uuid::new_v4().to_string();
    // Without this call the layer notes the session, and the response waits for the record for 250 ms at most. Here a client
    // learns no id whose chat is not in the database.
    if sessions.note(id.as_str()).recorded().await {
        return Ok(id_header(id));
    }
    // The database does not answer. Once it does, the chat is written with its start and its end.
    sessions.end(id, EndReason::Deleted);
    Err(StatusCode::SERVICE_UNAVAILABLE)
}

/// A message in a chat that has not ended.
async fn say(State(pool): State<PgPool>, id: SessionId) -> Result<IdHeader, StatusCode> {
    let count = sqlx::query("UPDATE chats SET messages = messages + 1 WHERE id = $1 AND ended_at IS NULL")
        .bind(id.as_str())
        .execute(&pool)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    if count.rows_affected() == 1 { Ok(id_header(id.to_string())) } else { Err(StatusCode::NOT_FOUND) }
}
