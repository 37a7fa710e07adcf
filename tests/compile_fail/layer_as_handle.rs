use tower_session_end::{ActiveSessions, signal};

fn main() {
    let sessions = ActiveSessions::builder().build().unwrap().layer();
    let shutdown = sessions.shutdown_on(signal::terminate());
    let finish = sessions.finish(shutdown);
    drop(finish);
}
