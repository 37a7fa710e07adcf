//! The life of a session of `tower-sessions`, with the layer outside.

use tokio::{task::JoinSet, time::timeout};
use tower_sessions_example::{app, cookie_format::CookieFormat, store::ids_in};

use crate::support::{Home, Host, PATIENCE, cookie, do_post, get, on_both_stores, post};

on_both_stores!(
    a_login_is_noted,
    a_session_that_changes_is_the_same_session,
    cycle_id_is_a_compaction,
    a_logout_is_an_end,
    a_login_that_redirects_is_noted,
    a_session_is_noted_only_if_it_is_saved,
    many_cookies_in_one_response_are_one_session,
    a_visitor_without_a_session_makes_no_event,
    a_forged_cookie_makes_no_event,
    a_session_that_the_store_has_lost_is_ended_at_its_next_request,
    after_a_shutdown_every_session_has_its_end,
);

async fn start(home: &Home) -> Host {
    Host::start(|sessions| app::outside(sessions, &home.store, &CookieFormat::Plain)).await
}

async fn a_login_is_noted(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    assert_eq!(host.active(), [id.as_str()]);
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    let event_log = host.stop().await;
    assert_eq!(event_log.reasons(&id), ["shutdown"]);
    assert_eq!(event_log.ends()[0].requests, 1);
}

async fn a_session_that_changes_is_the_same_session(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    for said in 1..=3 {
        // The cookie is set again each time.
        assert_eq!(post(&alice, "/say").await, (200, format!("alice {said}")));
    }
    assert_eq!(cookie(&alice), id);
    let event_log = host.stop().await;
    assert_eq!((event_log.starts().len(), event_log.reasons(&id)), (1, vec!["shutdown".to_owned()]));
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
    let event_log = host.stop().await;
    assert_eq!(
        (event_log.reasons(&old), event_log.reasons(&new)),
        (vec!["compaction".into()], vec!["shutdown".into()])
    );
    assert_eq!(event_log.ends()[0].next.as_ref().unwrap().id, new.as_str());
    assert_eq!(event_log.starts()[1].resumed_from.as_ref().unwrap(), old.as_str());
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
    // A login after the logout starts another session.
    do_post(&bob, "/logout").await;
    do_post(&bob, "/login/bob").await;
    assert_ne!(cookie(&bob), id);
    let event_log = host.stop().await;
    assert_eq!(event_log.reasons(&id), ["deleted"]);
    assert_eq!(event_log.summary(), "deleted 1, shutdown 2");
}

async fn a_login_that_redirects_is_noted(home: &Home) {
    let host = start(home).await;
    let alice = host.visitor();
    assert_eq!(post(&alice, "/login/alice/redirect").await, (200, "alice".to_owned()));
    assert_eq!(host.active(), [cookie(&alice)]);
    let event_log = host.stop().await;
    assert_eq!(event_log.ends()[0].requests, 1, "the request that followed the redirect");
}

async fn a_session_is_noted_only_if_it_is_saved(home: &Home) {
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
    // The client sends the session cookie among others.
    assert_eq!(get(&carol, "/").await, (200, "carol".to_owned()));
    do_post(&carol, "/login/carol/many").await;
    do_post(&carol, "/logout").await;
    let event_log = host.stop().await;
    assert_eq!((event_log.starts().len(), event_log.reasons(&id)), (1, vec!["deleted".to_owned()]));
    assert_eq!(event_log.ends()[0].requests, 3);
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

async fn a_forged_cookie_makes_no_event(home: &Home) {
    let host = start(home).await;
    // An invalid id, and a valid but unknown one.
    for value in ["junk", "%00", "\"\"", "a=b", "AAAAAAAAAAAAAAAAAAAAAA"] {
        for path in ["/", "/public"] {
            let visitor = host.visitor();
            visitor.forge(value).unwrap();
            assert_eq!(get(&visitor, path).await.0, 200, "{value}");
        }
        let visitor = host.visitor();
        visitor.forge(value).unwrap();
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

async fn after_a_shutdown_every_session_has_its_end(home: &Home) {
    let host = start(home).await;
    let mut browsers = JoinSet::new();
    for n in 0..20 {
        let browser = host.visitor();
        browsers.spawn(async move {
            let mut seen = Vec::new();
            // Until the server exits.
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
    // The signal comes under load.
    let (sessions, event_log) = (host.sessions.clone(), host.event_log.clone());
    let busy = async {
        while event_log.ends().len() < 100 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, busy).await.expect("the clients must make enough ends in time");
    let event_log = host.stop().await;
    let mut seen = Vec::new();
    while let Some(browser) = browsers.join_next().await {
        seen.extend(browser.unwrap());
    }
    assert!(sessions.is_empty());
    assert!(seen.len() >= 100, "{}", seen.len());
    for id in seen {
        assert_eq!(event_log.reasons(&id).len(), 1, "{id}");
    }
    event_log.check().unwrap();
}

#[tokio::test]
async fn the_shutdown_ends_the_sessions_that_the_sqlite_store_still_has() {
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
    let event_log = host.stop().await;
    let ended = event_log.ends().into_iter().filter(|end| end.reason.to_string() == "shutdown");
    let mut ended: Vec<_> = ended.map(|end| end.session.id.to_string()).collect();
    ended.sort();
    assert_eq!(ended.len(), 4);
    assert_eq!(ids_in(&home.file()).unwrap(), ended);
    assert_eq!(event_log.summary(), "compaction 3, deleted 2, shutdown 4");
}
