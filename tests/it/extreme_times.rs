//! Durations of zero, a nanosecond, years and `Duration::MAX`.

use std::{collections::HashSet, time::Duration};

use crate::support::assert_sum;
use tokio::time::{sleep, timeout};
use tower_session_end::{ActiveSessions, EndReason};

/// A few of these rows, in which any three columns still have all the values that they have together in all of them.
fn any_three_together(rows: &[[Duration; 5]]) -> Vec<[Duration; 5]> {
    let mut seen = HashSet::new();
    let mut few = Vec::new();
    // First those that show the most.
    for least in [10, 8, 5, 3, 1] {
        for row in rows {
            // Without two of the five columns.
            let pairs = (0..5).flat_map(|a| (0..a).map(move |b| (a, b)));
            let threes = pairs.map(|(a, b)| [0, 1, 2, 3, 4].map(|c| (c != a && c != b).then_some(row[c])));
            let new: Vec<_> = threes.filter(|three| !seen.contains(three)).collect();
            if new.len() >= least {
                few.push(*row);
                seen.extend(new);
            }
        }
    }
    few
}

#[tokio::test(start_paused = true)]
async fn g06_the_most_extreme_times_neither_panic_nor_hang() {
    let times = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_secs(1),
        Duration::from_secs(u64::MAX / 1_000_000_000),
        Duration::from_secs(u64::MAX / 2),
        Duration::MAX,
    ];
    let is_legal =
        |[drain, settle, _, _, idle]: &[Duration; 5]| !idle.is_zero() && (settle <= drain || *settle == Duration::MAX);
    let nth = |number: usize| [0, 1, 2, 3, 4].map(|column| times[number / times.len().pow(column) % times.len()]);
    let all: Vec<_> = (0..times.len().pow(5)).map(nth).filter(is_legal).collect();
    for row in any_three_together(&all) {
        let [drain, settle, conn, hook, idle] = row;
        // A longer one is refused by `build`, but for the one that means none.
        let longest = Duration::from_secs(240 * 86_400);
        let idle = if idle == Duration::MAX { idle } else { idle.min(longest) };
        let sessions = ActiveSessions::builder()
            .drain_timeout(drain)
            .connection_drain_timeout(conn)
            .hook_timeout(hook)
            .settle_timeout(settle)
            .idle_timeout(idle)
            .on_session_end(|_| async { tokio::task::yield_now().await })
            .on_session_end_batch(2, |_| async {})
            .build()
            .unwrap();
        for i in 0..3 {
            sessions.note(format!("{i}"));
        }
        sessions.end("0", EndReason::Idle);
        let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
        let server = async { sleep(Duration::from_millis(1)).await };
        let finished = timeout(Duration::from_secs(10), sessions.finish(server)).await;
        let finished = finished.unwrap_or_else(|_| panic!("hangs {row:?}"));
        assert_sum(&finished.report.sessions);
        assert_sum(&finished.report.drain);
        shutdown.await.unwrap();
    }
}
