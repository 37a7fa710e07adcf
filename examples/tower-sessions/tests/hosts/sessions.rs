//! What a session of `tower-sessions` goes through, with the layer around it.

use tokio::{task::JoinSet, time::timeout};
use tower_sessions_example::{app, seal::Seal, store::ids_in};

use crate::support::{Home, Host, PATIENCE, cookie, do_post, get, on_both_stores, post};

on_both_stores!(
    a_login_is_noted,
    a_session_that_changes_is_the_same_session,
    cycle_id_is_a_compaction,
    a_logout_is_an_end,
    a_login_that_redirects_is_noted,
    a_session_of_a_failed_login_is_noted_and_one_that_is_not_saved_is_not,
    many_cookies_in_one_response_are_one_session,
    a_visitor_without_a_session_makes_no_event,
    a_cookie_that_is_made_up_makes_no_event,
    a_session_that_the_store_has_lost_is_ended_at_its_next_request,
    after_a_stop_no_session_lacks_its_end,
);

async fn start(home: &Home) -> Host {
    Host::start(|sessions| app::outside(sessions, &home.store, &Seal::Plain)).await
}

async fn a_login_is_noted(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    assert_eq!(host.active(), [id.as_str()]);
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    let journal = host.stop().await;
    assert_eq!(journal.reasons(&id), ["shutdown"]);
    assert_eq!(journal.ends()[0].requests, 1);
}

async fn a_session_that_changes_is_the_same_session(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    for said in 1..=3 {
        // Its cookie is set again each time.
        assert_eq!(post(&alice, "/say").await, (200, format!("alice {said}")));
    }
    assert_eq!(cookie(&alice), id);
    let journal = host.stop().await;
    assert_eq!((journal.starts().len(), journal.reasons(&id)), (1, vec!["shutdown".to_owned()]));
}

async fn cycle_id_is_a_compaction(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let old = cookie(&alice);
    do_post(&alice, "/cycle").await;
    let new = cookie(&alice);
    assert_ne!(old, new);
    assert_eq!(host.active(), [new.as_str()]);
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    let journal = host.stop().await;
    assert_eq!((journal.reasons(&old), journal.reasons(&new)), (vec!["compaction".into()], vec!["shutdown".into()]));
    assert_eq!(journal.ends()[0].next.as_ref().unwrap().id, new.as_str());
    assert_eq!(journal.starts()[1].resumed_from.as_ref().unwrap(), old.as_str());
}

async fn a_logout_is_an_end(home: &Home) {
    let host = start(home).await;
    let (alice, bob) = (host.visitor(), host.visitor());
    do_post(&alice, "/login/alice").await;
    do_post(&bob, "/login/bob").await;
    let id = cookie(&bob);
    do_post(&bob, "/logout").await;
    assert_eq!(bob.cookie().unwrap(), None);
    assert_eq!(host.active(), [cookie(&alice)]);
    // Logged out, he may log in again: that is another session.
    do_post(&bob, "/logout").await;
    do_post(&bob, "/login/bob").await;
    assert_ne!(cookie(&bob), id);
    let journal = host.stop().await;
    assert_eq!(journal.reasons(&id), ["deleted"]);
    assert_eq!(journal.summary(), "deleted 1, shutdown 2");
}

async fn a_login_that_redirects_is_noted(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    assert_eq!(post(&alice, "/login/alice/redirect").await, (200, "alice".to_owned()));
    assert_eq!(host.active(), [cookie(&alice)]);
    let journal = host.stop().await;
    assert_eq!(journal.ends()[0].requests, 1, "the one that followed");
}

async fn a_session_of_a_failed_login_is_noted_and_one_that_is_not_saved_is_not(home: &Home) {
    let host = start(home).await;
    let (dave, erin) = (host.visitor(), host.visitor());
    assert_eq!(post(&dave, "/attempt").await.0, 401);
    assert_eq!(post(&dave, "/attempt").await.0, 401);
    assert_eq!(post(&erin, "/broken").await.0, 500);
    assert_eq!(erin.cookie().unwrap(), None);
    assert_eq!(host.active(), [cookie(&dave)]);
    assert_eq!(host.stop().await.summary(), "shutdown 1");
}

async fn many_cookies_in_one_response_are_one_session(home: &Home) {
    let host = start(home).await;
    let carol = host.visitor();
    do_post(&carol, "/login/carol/many").await;
    let id = cookie(&carol);
    assert_eq!(host.active(), [id.as_str()]);
    // It comes back among them.
    assert_eq!(get(&carol, "/").await, (200, "carol".to_owned()));
    do_post(&carol, "/login/carol/many").await;
    do_post(&carol, "/logout").await;
    let journal = host.stop().await;
    assert_eq!((journal.starts().len(), journal.reasons(&id)), (1, vec!["deleted".to_owned()]));
    assert_eq!(journal.ends()[0].requests, 3);
}

async fn a_visitor_without_a_session_makes_no_event(home: &Home) {
    let host = start(home).await;
    let visitor = host.visitor();
    assert_eq!(get(&visitor, "/").await, (200, "nobody".to_owned()));
    get(&visitor, "/public").await;
    do_post(&visitor, "/logout").await;
    assert_eq!(post(&visitor, "/say").await.0, 401);
    assert!(host.stop().await.starts().is_empty());
}

async fn a_cookie_that_is_made_up_makes_no_event(home: &Home) {
    let host = start(home).await;
    // No id at all, and one that could be.
    for value in ["junk", "%00", "\"\"", "a=b", "AAAAAAAAAAAAAAAAAAAAAA"] {
        for path in ["/", "/public"] {
            let visitor = host.visitor();
            visitor.make_up(value).unwrap();
            assert_eq!(get(&visitor, path).await.0, 200, "{value}");
        }
        let visitor = host.visitor();
        visitor.make_up(value).unwrap();
        do_post(&visitor, "/logout").await;
    }
    assert!(host.active().is_empty());
    assert!(host.stop().await.starts().is_empty());
}

async fn a_session_that_the_store_has_lost_is_ended_at_its_next_request(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    home.lose(&id).await;
    assert_eq!(get(&alice, "/").await, (200, "nobody".to_owned()));
    assert_eq!(alice.cookie().unwrap(), None);
    assert!(host.active().is_empty());
    assert_eq!(host.stop().await.reasons(&id), ["deleted"]);
}

async fn after_a_stop_no_session_lacks_its_end(home: &Home) {
    let host = start(home).await;
    let mut browsers = JoinSet::new();
    for n in 0..20 {
        let browser = host.visitor();
        browsers.spawn(async move {
            let mut seen = Vec::new();
            // Until the server is gone.
            for path in [&format!("/login/u{n}"), "/say", "/cycle", "/logout"].into_iter().cycle().take(80) {
                if browser.post(path).await.is_err() {
                    break;
                }
                seen.extend(browser.cookie().unwrap());
            }
            seen.sort();
            seen.dedup();
            seen
        });
    }
    // In the thick of it.
    let (sessions, journal) = (host.sessions.clone(), host.journal.clone());
    let busy = async {
        while journal.ends().len() < 100 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, busy).await.expect("so many ends in time");
    let journal = host.stop().await;
    let mut seen = Vec::new();
    while let Some(browser) = browsers.join_next().await {
        seen.extend(browser.unwrap());
    }
    assert!(sessions.is_empty());
    assert!(seen.len() >= 100, "{}", seen.len());
    for id in seen {
        assert_eq!(journal.reasons(&id).len(), 1, "{id}");
    }
    journal.check().unwrap();
}

#[tokio::test]
async fn what_a_sqlite_store_still_holds_is_what_the_stop_has_ended() {
    let home = Home::sqlite().await;
    let host = start(&home).await;
    for n in 0..6 {
        let visitor = host.visitor();
        do_post(&visitor, &format!("/login/u{n}")).await;
        if n % 2 == 0 {
            do_post(&visitor, "/cycle").await;
        }
        if n % 3 == 0 {
            do_post(&visitor, "/logout").await;
        }
    }
    let journal = host.stop().await;
    let ended = journal.ends().into_iter().filter(|end| end.reason.to_string() == "shutdown");
    let mut ended: Vec<_> = ended.map(|end| end.session.id.to_string()).collect();
    ended.sort();
    assert_eq!(ended.len(), 4);
    assert_eq!(ids_in(&home.file()).unwrap(), ended);
    assert_eq!(journal.summary(), "compaction 3, deleted 2, shutdown 4");
}
