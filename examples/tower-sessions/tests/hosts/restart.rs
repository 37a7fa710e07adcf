//! A host that continues with its sessions after a restart.

use std::collections::HashSet;

use tower_session_end::CookieProtocol;
use tower_sessions::cookie::Key;
use tower_sessions_example::{
    app,
    cookie_format::{COOKIE, CookieFormat},
    event_log::EventLog,
    store::Store,
};

use crate::support::{Home, Host, cookie, do_post, every_format, get, post};

/// Asserts that each session ended before and after the restart, in two generations.
fn assert_ended_in_both(before: &EventLog, after: &EventLog) {
    let events: HashSet<_> = before.ends().iter().map(|end| end.generation).collect();
    for end in after.ends() {
        let id = end.session.id.as_str();
        assert_eq!(before.reasons(id), ["shutdown"], "{id}");
        assert!(!events.contains(&end.generation), "{id}");
    }
}

#[tokio::test]
async fn with_adopt_a_session_is_noted_again_and_ended_again() {
    for format in every_format() {
        let home = Home::sqlite().await;
        let adopting = || format.protocol().adopt(true);
        let first = Host::start(|sessions| app::outside_with(sessions, &home.store, &format, adopting())).await;
        let (alice, bob, carol) = (first.visitor(), first.visitor(), first.visitor());
        for (visitor, path) in [(&alice, "/login/alice"), (&bob, "/login/bob"), (&carol, "/login/carol")] {
            do_post(visitor, path).await;
        }
        let before = first.stop().await;
        assert_eq!(before.summary(), "shutdown 3");

        // Opens the file again, as another process would.
        let store = Store::sqlite(&home.file()).await.unwrap();
        let second = Host::start(|sessions| app::outside_with(sessions, &store, &format, adopting())).await;
        let (alice, bob, carol) =
            (alice.moved_to(second.address), bob.moved_to(second.address), carol.moved_to(second.address));
        for _ in 0..2 {
            assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
        }
        // A logout or a rotation of a session that is not noted here makes no end here.
        do_post(&bob, "/logout").await;
        do_post(&carol, "/cycle").await;
        assert_eq!(second.active().len(), 2, "{format:?}");
        do_post(&alice, "/cycle").await;
        let after = second.stop().await;
        assert_eq!(after.starts().len(), 3, "{format:?}");
        assert_eq!(after.summary(), "compaction 1, shutdown 2", "{format:?}");
        let resumed = after.starts()[0].session.id.clone();
        assert_eq!(before.reasons(resumed.as_str()), ["shutdown"]);
        assert_eq!(after.reasons(resumed.as_str()), ["compaction"]);
        assert_ne!(before.ends()[0].generation, after.ends()[0].generation);
    }
}

#[tokio::test]
async fn without_adopt_a_session_is_noted_again_when_its_cookie_is_set_again() {
    let home = Home::sqlite().await;
    let first = Host::start(|sessions| app::outside(sessions, &home.store, &CookieFormat::Plain)).await;
    let alice = first.visitor();
    do_post(&alice, "/login/alice").await;
    let before = first.stop().await;

    let store = Store::sqlite(&home.file()).await.unwrap();
    let second = Host::start(|sessions| app::outside(sessions, &store, &CookieFormat::Plain)).await;
    let alice = alice.moved_to(second.address);
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    assert!(second.active().is_empty(), "a read sets no cookie");
    assert_eq!(post(&alice, "/say").await, (200, "alice 1".to_owned()));
    assert_eq!(second.active(), [cookie(&alice)]);
    let after = second.stop().await;
    assert_eq!(after.summary(), "shutdown 1");
    assert_ended_in_both(&before, &after);
}

#[tokio::test]
async fn adopt_notes_a_forged_plain_cookie_on_a_public_page() {
    let home = Home::memory();
    let forged = "AAAAAAAAAAAAAAAAAAAAAA";
    let visit = async |host: &Host| {
        let mallory = host.visitor();
        mallory.forge(forged).unwrap();
        // This page asks the store: the cookie is removed, and no session is adopted.
        get(&mallory, "/").await;
        let noted = host.active().len();
        mallory.forge(forged).unwrap();
        get(&mallory, "/public").await;
        noted
    };
    let plain = CookieProtocol::new(COOKIE).adopt(true);
    let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &CookieFormat::Plain, plain)).await;
    assert_eq!(visit(&host).await, 0);
    assert_eq!(host.active(), [forged]);
    assert_eq!(host.stop().await.summary(), "shutdown 1");

    for format in [CookieFormat::Signed(Key::generate()), CookieFormat::Private(Key::generate())] {
        let protocol = format.protocol().adopt(true);
        let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &format, protocol)).await;
        assert_eq!(visit(&host).await, 0);
        assert!(host.stop().await.starts().is_empty());
    }
}
