//! Ids, details, numbers and times are stored without change.

use std::time::{Duration, SystemTime};

use super::{
    Applied, EndRecord, GenerationId, Kit, Orphan, Record, Session, SessionId, Store, end, end_as, hold, now, same_all,
};
use crate::session::EndReason;

fn id(text: impl AsRef<str>) -> SessionId {
    SessionId::with_max_len(text, usize::MAX).expect("visible ASCII")
}

/// Ids that a store could misinterpret.
pub(super) async fn ids<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let visible: String = ('!'..='~').collect();
    let mut all: Vec<SessionId> = visible.chars().map(|c| id(c.to_string())).collect();
    all.extend(
        [
            "'", "''", "\"';--", "%", "%s%n", "{}", "{a}", "}", "a*", "[a]", "a?", "\\", "\\0", "$1", "?1", ":id",
            "@id", "null", "true", "0", "00", "0.0", "1e3", "0x1", "-", "--", "a:b", "abc", "ABC", "abcd", "s:", "x:",
        ]
        .map(id),
    );
    all.push(id(&visible));
    all.push(id(visible.repeat(60 * 1024 / visible.len())));
    all.push(id(format!("{}-", visible.repeat(60 * 1024 / visible.len()))));
    all.sort();
    all.dedup();
    let records: Vec<_> = all.iter().map(|id| kit.again(id, kit.generation())).collect();
    let holds = records.iter().map(hold).collect();
    a.expect_all("all ids are distinct", holds, vec![Applied::Created; records.len()]).await;
    let again = records.iter().map(|record| hold(&kit.next(record))).collect();
    let joined = records.iter().map(|record| Applied::Joined(record.clone())).collect();
    a.expect_all("sessions of all ids are unchanged", again, joined).await;
    let c = kit.holder().await;
    let holds = records.iter().map(hold).collect();
    c.expect_all("second holders of all ids", holds, vec![Applied::Created; records.len()]).await;
    let ends = records.iter().map(|record| end(record, 1)).collect();
    a.expect_all("ends of all ids", ends, vec![Applied::Owned { requests: 1 }; records.len()]).await;
    c.acknowledge("notices of all ids", &records.iter().collect::<Vec<_>>()).await;
    kit.kill(a).await;
    let b = kit.holder().await;
    let orphans = b.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| orphan.record.clone()).collect();
    same_all("orphans of all ids", &found, &records);
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b, c]).await;
}

/// Texts that a store could truncate, normalise or reject.
pub(super) async fn details<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let texts = [
        "",
        " ",
        "\0",
        "a\0b",
        "\t\r\n\u{b}\u{1b}[31m",
        "'\"\\;--{}[]%",
        "Grüße, 你好, שלום",
        "👩🏽‍🚀",
        "e\u{301} \u{e9}",
        "\u{202e}abc\u{feff}",
        "\u{d7ff}\u{e000}\u{fffd}\u{ffff}\u{10ffff}",
        "null",
        "{\"a\":[1]}",
    ];
    let mut sessions = Vec::new();
    for text in texts {
        let with_id = || Session::new(kit.record().session.id);
        sessions.push(with_id().with_key(text).with_agent_id(text).with_store_path(text).with_session_file(text));
        sessions.push(with_id().with_attribute(text, text).with_attribute("", ""));
        sessions.push(with_id().with_attribute("long", text.repeat(2000)));
        sessions.push(with_id());
    }
    let mut expected = Vec::new();
    for session in sessions {
        let next = Session { id: kit.record().session.id, ..session.clone() };
        let end = EndRecord::new(EndReason::Compaction, Some(next), now(), 1);
        expected.push(Orphan::new(Record::new(session, kit.generation(), now()), end, 0));
    }
    let records = || expected.iter().map(|orphan| &orphan.record);
    a.expect_all("holds", records().map(hold).collect(), vec![Applied::Created; expected.len()]).await;
    let again = records().map(|record| hold(&kit.next(record))).collect();
    a.expect_all("unchanged details", again, records().cloned().map(Applied::Joined).collect()).await;
    let ends = expected.iter().map(|orphan| end_as(&orphan.record, orphan.end.clone())).collect();
    a.expect_all("ends", ends, vec![Applied::Owned { requests: 1 }; expected.len()]).await;
    kit.kill(a).await;
    let b = kit.holder().await;
    let orphans = b.claim_all().await;
    same_all("details of claims", &orphans, &expected);
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b]).await;
}

/// Numbers and times at their limits.
pub(super) async fn numbers<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let times = [0, 1, 999, 1_000, 253_402_300_799_999].map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    let requests = [0, 1, u64::from(u32::MAX), 1 << 40, (1 << 53) - 1];
    let ids = [(0, 0), (1, u64::MAX), (u128::MAX, 0), (u128::MAX, 1 << 63), (u128::MAX, u64::MAX)];
    let mut expected = Vec::new();
    for (i, (time, (instance, generation))) in times.into_iter().zip(ids).enumerate() {
        let record = Record::new(kit.record().session, GenerationId::new(instance, generation), time);
        a.expect("a hold", hold(&record), Applied::Created).await;
        a.expect("unchanged times", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
        let reason = EndReason::ALL[i];
        let end = EndRecord::new(reason, None, time, requests[i]);
        a.expect("an end", end_as(&record, end.clone()), Applied::Owned { requests: requests[i] }).await;
        expected.push(Orphan::new(record, end, 0));
    }
    kit.kill(a).await;
    let b = kit.holder().await;
    let orphans = b.claim_all().await;
    same_all("numbers and times of claims", &orphans, &expected);
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b]).await;
}
