//! What an operator sees with `psql`.

use tower_session_end::registry::{Applied, Registry};

use super::support::{OWNED, dead_letter, end, hold, holder, new_schema, one, record, shared};
use crate::support::operations_page;

#[tokio::test]
async fn an_operator_reads_the_views() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let (a, b) = (holder(server, &schema).await, holder(server, &schema).await);
    let [active, ending, dead] = [record("active"), record("ending"), record("dead")];
    for record in [&active, &ending, &dead] {
        one(&a, hold(record)).await;
    }
    one(&b, hold(&active)).await;
    for record in [&ending, &dead] {
        assert_eq!(one(&a, end(record)).await, OWNED);
    }
    one(&a, dead_letter(&dead, "it\0 failed")).await;
    let ask = |what: &str| server.ask(&format!("SET search_path = \"{schema}\"; {what}"));
    let process = format!("process {}", std::process::id());
    let row = ask("SELECT id, key, agent, since > now() - interval '1 minute', held_by FROM active_sessions");
    assert!(row.starts_with("active|key|main|t|") && row.matches(&process).count() == 2, "{row}");
    let row = ask("SELECT id, reason, attempts, requests, ended_at > since, claimed_by FROM ending_sessions");
    assert!(row.starts_with("ending|deleted|0|0|t|") && row.contains(&process), "{row}");
    assert_eq!(ask("SELECT id, reason, error FROM dead_letters"), "dead|deleted|it\u{fffd} failed");

    // Details that PostgreSQL cannot show, and times out of its range, spoil no view.
    let mut odd = record("odd");
    odd.session = odd.session.with_key("a\0b").with_agent_id("agent");
    odd.started_at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 40);
    assert_eq!(one(&a, hold(&odd)).await, Applied::Created);
    assert_eq!(ask("SELECT count(*), count(key), count(since) FROM active_sessions"), "2|1|1");

    // A lost session stands in the view of the ending ones once it is recovered.
    one(&b, hold(&odd)).await;
    a.release_lease().await.unwrap();
    assert_eq!(b.claim_orphans(10).await.unwrap().len(), 1);
    assert_eq!(ask("SELECT count(*) FROM active_sessions"), "2");
    let lost = record("lost");
    let c = holder(server, &schema).await;
    one(&c, hold(&lost)).await;
    c.release_lease().await.unwrap();
    assert_eq!(b.claim_orphans(10).await.unwrap().len(), 1);
    let row = ask("SELECT reason, claimed_by FROM ending_sessions WHERE id = 'lost'");
    assert!(row.starts_with("lost|") && row.contains(&process), "{row}");
}

#[tokio::test]
async fn each_command_of_the_operations_page_shows_what_it_says() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let holder = holder(server, &schema).await;
    let [active, ending, dead] = [record("active"), record("ending"), record("dead")];
    for record in [&active, &ending, &dead] {
        one(&holder, hold(record)).await;
    }
    for record in [&ending, &dead] {
        assert_eq!(one(&holder, end(record)).await, OWNED);
    }
    one(&holder, dead_letter(&dead, "no")).await;
    let asked = operations_page::commands("psql -c");
    let answers: Vec<_> =
        asked.iter().map(|sql| server.ask(&sql.replace("session_end.", &format!("{schema}.")))).collect();
    assert_eq!(answers.len(), 3);
    let process = format!("(process {}", std::process::id());
    assert!(answers[0].contains(&process) && answers[0].ends_with("|1"), "{answers:?}");
    assert!(answers[1].starts_with("ending|deleted|0|") && answers[1].contains(&process), "{answers:?}");
    assert_eq!(answers[2], "dead|0|no");
}
