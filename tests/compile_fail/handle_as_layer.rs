use tower_layer::Layer;
use tower_session_end::ActiveSessions;

/// As axum's `Router::layer`.
fn serve_with(_: impl Layer<()>) {}

fn main() {
    let sessions = ActiveSessions::builder().build().unwrap();
    serve_with(sessions);
}
