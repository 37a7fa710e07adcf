//! Signed and encrypted cookies.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tower_session_end::{ActiveSessions, CookieProtocol, EndReason, SessionEnd};
use tower_sessions::cookie::Key;
use tower_sessions_example::{
    app,
    cookie_format::{COOKIE, CookieFormat},
};

use crate::support::{Home, Host, cookie, do_post, get, on_both_stores, post};

on_both_stores!(
    a_signed_cookie_works_from_login_to_logout,
    a_private_cookie_works_from_login_to_logout,
    a_signed_cookie_without_a_reader_is_the_id,
    a_private_cookie_without_a_reader_is_a_new_session_each_time_it_is_set,
    a_value_with_an_invalid_signature_has_no_session,
);

async fn a_signed_cookie_works_from_login_to_logout(home: &Home) {
    login_to_logout(home, &CookieFormat::Signed(Key::generate())).await;
}

async fn a_private_cookie_works_from_login_to_logout(home: &Home) {
    login_to_logout(home, &CookieFormat::Private(Key::generate())).await;
}

/// Login, change, rotation and logout, with the id of `tower-sessions` and not the cookie's value.
async fn login_to_logout(home: &Home, format: &CookieFormat) {
    let host = Host::start(|sessions| app::outside(sessions, &home.store, format)).await;
    let (alice, bob) = (host.visitor(), host.visitor());
    do_post(&alice, "/login/alice").await;
    assert_eq!(host.active()[0].len(), 22);
    assert!(cookie(&alice).len() > 22);
    for said in 1..=3 {
        assert_eq!(post(&alice, "/say").await, (200, format!("alice {said}")));
    }
    do_post(&alice, "/cycle").await;
    assert_eq!(get(&alice, "/").await, (200, "alice".to_owned()));
    do_post(&bob, "/login/bob/many").await;
    do_post(&bob, "/logout").await;
    let event_log = host.stop().await;
    assert_eq!(event_log.starts().len(), 3);
    assert_eq!(event_log.summary(), "compaction 1, deleted 1, shutdown 1");
    assert!(event_log.ends().iter().all(|end| end.session.id.as_str().len() == 22));
}

async fn a_signed_cookie_without_a_reader_is_the_id(home: &Home) {
    let format = CookieFormat::Signed(Key::generate());
    let protocol = CookieProtocol::new(COOKIE);
    let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &format, protocol)).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let id = cookie(&alice);
    assert!(id.contains('='), "the id must include the signature in base64: {id}");
    do_post(&alice, "/say").await;
    assert_eq!(host.active(), [id.as_str()]);
    do_post(&alice, "/cycle").await;
    do_post(&alice, "/logout").await;
    let event_log = host.stop().await;
    assert_eq!(event_log.reasons(&id), ["compaction"]);
    assert_eq!(event_log.summary(), "compaction 1, deleted 1");
}

/// Not recommended, but each of these sessions has one end.
async fn a_private_cookie_without_a_reader_is_a_new_session_each_time_it_is_set(home: &Home) {
    let format = CookieFormat::Private(Key::generate());
    let protocol = CookieProtocol::new(COOKIE);
    let host = Host::start(|sessions| app::outside_with(sessions, &home.store, &format, protocol)).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let first = cookie(&alice);
    do_post(&alice, "/say").await;
    do_post(&alice, "/say").await;
    get(&alice, "/").await;
    assert_eq!(host.active(), [cookie(&alice)]);
    assert_ne!(cookie(&alice), first);
    assert_eq!(host.stop().await.summary(), "compaction 2, shutdown 1");
}

async fn a_value_with_an_invalid_signature_has_no_session(home: &Home) {
    for format in [CookieFormat::Signed(Key::generate()), CookieFormat::Private(Key::generate())] {
        let host = Host::start(|sessions| app::outside(sessions, &home.store, &format)).await;
        let (alice, mallory) = (host.visitor(), host.visitor());
        do_post(&alice, "/login/alice").await;
        let mut forged = cookie(&alice).into_bytes();
        forged[0] = if forged[0] == b'A' { b'B' } else { b'A' };
        mallory.forge(&String::from_utf8(forged).unwrap()).unwrap();
        assert_eq!(get(&mallory, "/").await, (200, "nobody".to_owned()));
        do_post(&mallory, "/logout").await;
        assert_eq!(host.active().len(), 1, "the session of alice must still be active");
        // A login with the forged cookie starts a new session.
        do_post(&mallory, "/login/mallory").await;
        let event_log = host.stop().await;
        assert_eq!(event_log.summary(), "shutdown 2");
        assert!(event_log.starts().iter().all(|start| start.resumed_from.is_none()));
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_shows_the_value_of_the_cookie() {
    let log = Log::default();
    let writer = log.clone();
    // For this thread, which runs the whole test.
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN);
    let _logging = tracing::subscriber::set_default(subscriber.with_writer(move || writer.clone()).finish());

    let home = Home::memory();
    let format = CookieFormat::Signed(Key::generate());
    let sessions = ActiveSessions::builder()
        .on_session_end(async |end: SessionEnd| Err::<(), _>(format!("no place for a {}", end.reason)))
        .build()
        .unwrap();
    let protocol = CookieProtocol::new(COOKIE);
    let host = Host::start(|_| app::outside_with(&sessions, &home.store, &format, protocol)).await;
    let alice = host.visitor();
    do_post(&alice, "/login/alice").await;
    let cookie = cookie(&alice);
    assert!(sessions.contains(&cookie));
    let report = sessions.drain(EndReason::Shutdown).await;
    host.stop().await;

    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let said = format!("{report} {report:?} {sessions:?} {logged}");
    assert!(logged.contains("no place for a shutdown") && said.contains(&cookie[..8]), "{said}");
    assert!(!said.contains(&cookie[..12]), "{said}");
}
