//! A reader that keeps a transaction open, as a shell of an operator after `begin`.

use std::fs;

use tower_session_end::registry::{Applied, Registry};

use super::support::{Dir, forget, holds, records};

const MIB: u64 = 1024 * 1024;

/// What the operations page says of the log.
#[tokio::test]
async fn the_log_grows_under_a_stuck_reader_and_shrinks_after_it() {
    let dir = Dir::new();
    let registry = dir.open();
    let size = || fs::metadata(dir.path().join("sessions.db-wal")).unwrap().len();
    let shorten = || dir.look().query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, i64>(0)).unwrap();
    let group = async |number: usize| {
        // Large ones fill the log soon.
        let mut records = records(&format!("{number}-"), 100);
        for record in &mut records {
            record.session = record.session.clone().with_attribute("notes", "n".repeat(10_000));
        }
        let started = registry.apply(holds(&records)).await.unwrap();
        assert!(started.iter().all(|answer| *answer == Applied::Created));
        registry.apply(records.iter().map(forget).collect()).await.unwrap();
    };
    let reader = dir.look();
    reader.execute_batch("BEGIN; SELECT count(*) FROM sessions;").unwrap();
    for number in 0..500 {
        group(number).await;
        if size() > 20 * MIB {
            break;
        }
    }
    assert!(size() > 20 * MIB, "{}", size());
    assert_eq!(shorten(), 1, "a reader holds it");
    drop(reader);
    for number in 500..510 {
        group(number).await;
    }
    assert!(size() <= 16 * MIB, "{}", size());
    assert_eq!((shorten(), size()), (0, 0));
}
