//! A host that goes on after a restart with the sessions of before.

use std::collections::HashSet;

use tower_session_end::CookieProtocol;
use tower_sessions::cookie::Key;
use tower_sessions_example::{
    app,
    journal::Journal,
    seal::{COOKIE, Seal},
    store::Store,
};

use crate::support::{Home, Host, cookie, do_post, every_seal, get, post};

/// Each of these sessions ended in both lives, by two events.
fn assert_ended_in_both(before: &Journal, after: &Journal) {
    let events: HashSet<_> = before.ends().iter().map(|end| end.generation).collect();
    for end in after.ends() {
        let id = end.session.id.as_str();
        assert_eq!(before.reasons(id), ["shutdown"], "{id}");
        assert!(!events.contains(&end.generation), "{id}");
    }
}

#[tokio::test]
async fn with_adopt_a_session_is_noted_again_and_ended_again() {
    for seal in every_seal() {
        let home = Home::sqlite().await;
        let adopting = || seal.protocol().adopt(true);
        let first = Host::start(|sessions| app::outside_with(sessions, &home.store, &seal, adopting())).await;
        let (alice, bob, carol) = (first.visitor(), first.visitor(), first.visitor());
        for (visitor, path) in [(&alice, "/login/alice"), (&bob, "/login/bob"), (&carol, "/login/carol")] {
            do_post(visitor, path).await;
        }
        let before = first.stop().await;
        assert_eq!(before.summary(), "shutdown 3");

        // The file is opened anew, as by another process.
        let store = Store::sqlite(&home.file()).await.unwrap();
        let second = Host::start(|sessions| app::outside_with(sessions, &store, &seal, adopting())).await;
        let (alice, bob, carol) =
            (alice.moved_to(second.address), bob.moved_to(second.address), carol.moved_to(second.address));
        for _ in 0..2 {
            assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
        }
        // At once over, or another: a session that nobody knew here has no end here.
        do_post(&bob, "/logout").await;
        do_post(&carol, "/cycle").await;
        assert_eq!(second.active().len(), 2, "{seal:?}");
        do_post(&alice, "/cycle").await;
        let after = second.stop().await;
        assert_eq!(after.starts().len(), 3, "{seal:?}");
        assert_eq!(after.summary(), "compaction 1, shutdown 2", "{seal:?}");
        let resumed = after.starts()[0].session.id.clone();
        assert_eq!(before.reasons(resumed.as_str()), ["shutdown"]);
        assert_eq!(after.reasons(resumed.as_str()), ["compaction"]);
        assert_ne!(before.ends()[0].generation, after.ends()[0].generation);
    }
}

#[tokio::test]
async fn without_adopt_a_session_is_noted_again_when_its_cookie_is_set_again() {
    let home = Home::sqlite().await;
    let first = Host::start(|sessions| app::outside(sessions, &home.store, &Seal::Plain)).await;
    let alice = first.visitor();
    do_post(&alice, "/login/alice").await;
    let before = first.stop().await;

    let store = Store::sqlite(&home.file()).await.unwrap();
    let second = Host::start(|sessions| app::outside(sessions, &store, &Seal::Plain)).await;
    let alice = alice.moved_to(second.address);
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    assert!(second.active().is_empty(), "she only looked");
    assert_eq!(post(&alice, "/say").await, (200, "alice 1".to_owned()));
    assert_eq!(second.active(), [cookie(&alice)]);
    let after = second.stop().await;
    assert_eq!(after.summary(), "shutdown 1");
    assert_ended_in_both(&before, &after);
}

#[tokio::test]
async fn adopt_believes_a_page_that_asks_nobody_unless_the_cookie_is_sealed() {
    let home = Home::memory();
    let made_up = "AAAAAAAAAAAAAAAAAAAAAA";
    let visit = async |host: &Host| {
        let mallory = host.visitor();
        mallory.make_up(made_up).unwrap();
        // The store is asked: the cookie is removed, and nothing is adopted.
        get(&mallory, "/").await;
        let noted = host.active().len();
        mallory.make_up(made_up).unwrap();
        get(&mallory, "/public").await;
        noted
    };
    let plain = CookieProtocol::new(COOKIE).adopt(true);
    let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &Seal::Plain, plain)).await;
    assert_eq!(visit(&host).await, 0);
    assert_eq!(host.active(), [made_up]);
    assert_eq!(host.stop().await.summary(), "shutdown 1");

    for seal in [Seal::Signed(Key::generate()), Seal::Private(Key::generate())] {
        let protocol = seal.protocol().adopt(true);
        let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &seal, protocol)).await;
        assert_eq!(visit(&host).await, 0);
        assert!(host.stop().await.starts().is_empty());
    }
}
