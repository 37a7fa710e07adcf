use axum::Router;
use tower_session_end::ActiveSessions;

fn main() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let _: Router = Router::new().layer(sessions);
}
