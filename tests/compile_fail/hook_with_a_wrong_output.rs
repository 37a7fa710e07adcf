use tower_session_end::{ActiveSessions, SessionEnd};

fn main() {
    let _ = ActiveSessions::builder().on_session_end(async |_: SessionEnd| 42).build();
}
