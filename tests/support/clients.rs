//! Clients for processes that are killed at random moments.

use std::{ops::Range, process, time::Duration};

use tower_session_end::{ActiveSessions, EndReason};

use super::random::Random;

/// Spawns so many clients. Each starts a session, waits for its record, pauses for some of these milliseconds, ends three
/// sessions of four, and goes on with the next one. They do not stop.
pub(crate) fn spawn_clients(sessions: &ActiveSessions, count: u64, pause: Range<u64>) {
    for client in 0..count {
        let (sessions, pause) = (sessions.clone(), pause.clone());
        let mut random = Random::new(u64::from(process::id()) << 32 | client);
        tokio::spawn(async move {
            for n in 0.. {
                let id = format!("{}-{client}-{n}", process::id());
                sessions.note(id.as_str()).recorded().await;
                let pause = pause.start + random.below(pause.end - pause.start);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if !random.one_in(4) {
                    sessions.end(id.as_str(), EndReason::Deleted);
                }
            }
        });
    }
}
