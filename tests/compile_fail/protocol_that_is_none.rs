use tower_session_end::ActiveSessions;

fn main() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let _ = sessions.layer_with("no protocol");
}
