use tower_session_end::{ActiveSessions, SessionEnd, SessionStart};

#[derive(Clone)]
struct Db;

impl Db {
    async fn note(&self, _: &SessionStart) {}
    async fn complete(&self, _: &[SessionEnd]) {}
}

fn main() {
    let (one, two, three) = (Db, Db, Db);
    let _ = ActiveSessions::builder()
        .on_session_start(async move |start: SessionStart| one.note(&start).await)
        .on_session_end(async move |end: SessionEnd| two.complete(&[end]).await)
        .on_session_end_batch(10, async move |ends: Vec<SessionEnd>| three.complete(&ends).await)
        .build();
}
