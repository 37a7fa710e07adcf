use tower_layer::Layer;
use tower_session_end::{ActiveSessions, McpProtocol, signal};

/// As axum's `Router::layer`.
fn serve_with(_: impl Layer<()>) {}

fn main() {
    let sessions = ActiveSessions::builder();
    serve_with(sessions.layer());
    serve_with(sessions.layer_with(McpProtocol::new()));
    let shutdown = sessions.shutdown_on(signal::terminate());
    let finish = sessions.finish(shutdown);
    drop(finish);
    serve_with(sessions);
}
