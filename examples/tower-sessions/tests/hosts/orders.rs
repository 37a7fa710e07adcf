//! The layer outside of `tower-sessions`, and inside of it.

use tower_session_end::CookieProtocol;
use tower_sessions_example::{
    app,
    seal::{COOKIE, Seal},
};

use crate::support::{Home, Host, cookie, do_post, every_seal, get, on_both_stores, post};

on_both_stores!(
    in_either_order_the_events_are_the_same,
    inside_a_lost_session_is_ended_too,
    inside_the_cookies_alone_tell_nothing,
    inside_with_adopt_a_session_is_noted_at_its_second_request_and_ends_at_the_stop,
);

/// Login, change, rotation, logout; a failed login, a broken one, a redirect, many cookies, nobody, and a made-up one.
async fn story(host: &Host) {
    let (alice, bob, carol) = (host.visitor(), host.visitor(), host.visitor());
    do_post(&alice, "/login/alice").await;
    do_post(&alice, "/say").await;
    do_post(&alice, "/cycle").await;
    assert_eq!(post(&alice, "/say").await, (200, "alice 2".to_owned()));
    assert_eq!(post(&bob, "/login/bob/redirect").await, (200, "bob".to_owned()));
    do_post(&bob, "/logout").await;
    do_post(&bob, "/logout").await;
    do_post(&carol, "/login/carol/many").await;
    assert_eq!(post(&host.visitor(), "/attempt").await.0, 401);
    assert_eq!(post(&host.visitor(), "/broken").await.0, 500);
    assert_eq!(get(&host.visitor(), "/").await, (200, "nobody".to_owned()));
    let mallory = host.visitor();
    mallory.make_up("AAAAAAAAAAAAAAAAAAAAAA").unwrap();
    assert_eq!(get(&mallory, "/").await, (200, "nobody".to_owned()));
}

async fn in_either_order_the_events_are_the_same(home: &Home) {
    for seal in every_seal() {
        for order in [app::outside, app::inside] {
            let host = Host::start(|sessions| order(sessions, &home.store, &seal)).await;
            story(&host).await;
            let journal = host.stop().await;
            assert_eq!(journal.summary(), "compaction 1, deleted 1, shutdown 3", "{seal:?}");
            let requests: Vec<_> = journal
                .starts()
                .iter()
                .map(|start| journal.ends().iter().find(|end| end.generation == start.generation).unwrap().requests)
                .collect();
            // Alice before and after, Bob, Carol, and the failed login.
            assert_eq!(requests, [2, 1, 2, 0, 0], "{seal:?}");
            assert!(journal.ends().iter().all(|end| end.session.id.as_str().len() == 22), "{seal:?}");
        }
    }
}

async fn inside_a_lost_session_is_ended_too(home: &Home) {
    let host = Host::start(|sessions| app::inside(sessions, &home.store, &Seal::Plain)).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    home.lose(&id).await;
    assert_eq!(get(&alice, "/").await, (200, "nobody".to_owned()));
    assert_eq!(host.stop().await.reasons(&id), ["deleted"]);
}

/// What does not work: `tower-sessions` sets the cookie when the response has left our layer.
async fn inside_the_cookies_alone_tell_nothing(home: &Home) {
    let protocol = CookieProtocol::new(COOKIE);
    let host = Host::start(|sessions| app::inside_with(sessions, &home.store, &Seal::Plain, protocol)).await;
    story(&host).await;
    assert!(host.stop().await.starts().is_empty());
}

/// What works of it: the cookies of the requests. A logout and a rotation stay unseen, so what they end stays active
/// until it is idle, or until the stop; and one who never comes again was never there.
async fn inside_with_adopt_a_session_is_noted_at_its_second_request_and_ends_at_the_stop(home: &Home) {
    let protocol = CookieProtocol::new(COOKIE).adopt(true);
    let host = Host::start(|sessions| app::inside_with(sessions, &home.store, &Seal::Plain, protocol)).await;
    let (alice, bob, carol) = (host.visitor(), host.visitor(), host.visitor());
    do_post(&alice, "/login/alice").await;
    assert!(host.active().is_empty());
    do_post(&alice, "/say").await;
    let first = cookie(&alice);
    assert_eq!(host.active(), [first.as_str()]);
    do_post(&alice, "/cycle").await;
    do_post(&alice, "/say").await;
    let second = cookie(&alice);
    do_post(&bob, "/login/bob").await;
    get(&bob, "/").await;
    let logged_out = cookie(&bob);
    do_post(&bob, "/logout").await;
    do_post(&carol, "/login/carol").await;

    let mut expected = [first, second, logged_out];
    expected.sort();
    assert_eq!(host.active(), expected);
    let journal = host.stop().await;
    assert_eq!(journal.summary(), "shutdown 3");
    assert!(journal.reasons(&cookie(&carol)).is_empty());
}
