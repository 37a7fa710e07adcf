use tower_session_end::ActiveSessions;

fn main() {
    let _ = ActiveSessions::builder().hook("no hook").build();
}
