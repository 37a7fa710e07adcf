use axum::Router;
use tower_session_end::{ActiveSessions, McpProtocol, signal};

fn main() {
    let sessions = ActiveSessions::builder();
    let _: Router = Router::new().layer(sessions.layer());
    let _: Router = Router::new().layer(sessions.layer_with(McpProtocol::new()));
    let shutdown = sessions.shutdown_on(signal::terminate());
    let finish = sessions.finish(shutdown);
    drop(finish);
}
