//! The layer outside of `tower-sessions`, and inside of it.

use tower_session_end::CookieProtocol;
use tower_sessions_example::{
    app,
    cookie_format::{COOKIE, CookieFormat},
};

use crate::support::{Home, Host, cookie, do_post, every_format, get, on_both_stores, post};

on_both_stores!(
    in_either_order_the_events_are_the_same,
    inside_a_session_that_the_store_lost_is_ended,
    inside_cookies_alone_note_no_session,
    inside_with_adopt_a_session_is_noted_at_its_second_request,
);

/// Login, change, rotation, logout; a failed login, an error, a redirect, many cookies, no cookie, and a forged one.
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
    mallory.forge("AAAAAAAAAAAAAAAAAAAAAA").unwrap();
    assert_eq!(get(&mallory, "/").await, (200, "nobody".to_owned()));
}

async fn in_either_order_the_events_are_the_same(home: &Home) {
    for format in every_format() {
        for order in [app::outside, app::inside] {
            let host = Host::start(|sessions| order(sessions, &home.store, &format)).await;
            story(&host).await;
            let event_log = host.stop().await;
            assert_eq!(event_log.summary(), "compaction 1, deleted 1, shutdown 3", "{format:?}");
            let requests: Vec<_> = event_log
                .starts()
                .iter()
                .map(|start| event_log.ends().iter().find(|end| end.generation == start.generation).unwrap().requests)
                .collect();
            // Alice before and after, Bob, Carol, and the failed login.
            assert_eq!(requests, [2, 1, 2, 0, 0], "{format:?}");
            assert!(event_log.ends().iter().all(|end| end.session.id.as_str().len() == 22), "{format:?}");
        }
    }
}

async fn inside_a_session_that_the_store_lost_is_ended(home: &Home) {
    let host = Host::start(|sessions| app::inside(sessions, &home.store, &CookieFormat::Plain)).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    home.lose(&id).await;
    assert_eq!(get(&alice, "/").await, (200, "nobody".to_owned()));
    assert_eq!(host.stop().await.reasons(&id), ["deleted"]);
}

/// Cookies alone do not work inside: `tower-sessions` sets the cookie after the layer has handled the response.
async fn inside_cookies_alone_note_no_session(home: &Home) {
    let protocol = CookieProtocol::new(COOKIE);
    let host = Host::start(|sessions| app::inside_with(sessions, &home.store, &CookieFormat::Plain, protocol)).await;
    story(&host).await;
    assert!(host.stop().await.starts().is_empty());
}

/// With `adopt`, the cookies of requests work inside. A logout or a rotation is not seen, so the session stays active
/// until it is idle or until the shutdown. A session without a second request is never noted.
async fn inside_with_adopt_a_session_is_noted_at_its_second_request(home: &Home) {
    let protocol = CookieProtocol::new(COOKIE).adopt(true);
    let host = Host::start(|sessions| app::inside_with(sessions, &home.store, &CookieFormat::Plain, protocol)).await;
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
    let event_log = host.stop().await;
    assert_eq!(event_log.summary(), "shutdown 3");
    assert!(event_log.reasons(&cookie(&carol)).is_empty());
}
