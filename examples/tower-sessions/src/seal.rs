//! What a cookie holds: the id of `tower-sessions`, signed, or encrypted; and how to read it.

use std::fmt;

use tower_session_end::CookieProtocol;
use tower_sessions::cookie::{Cookie, CookieJar, Key};

/// The name of the cookie.
pub const COOKIE: &str = "sid";

/// How the id is put into the cookie.
#[derive(Clone)]
pub enum Seal {
    /// As it is.
    Plain,
    /// With a signature before it: the same value for the same session, each time.
    Signed(Key),
    /// Encrypted: another value each time, for the same session.
    Private(Key),
}

impl Seal {
    /// The word for it in a line of output.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Signed(_) => "signed",
            Self::Private(_) => "private",
        }
    }

    /// The protocol that knows a session by the id that `tower-sessions` knows it by, however it is sealed. A value
    /// whose seal is broken has no id.
    ///
    /// Without a reader the sealed value itself would be the id. That does for a signed cookie; an encrypted one would
    /// be a rotation each time it is set.
    #[must_use]
    pub fn protocol(&self) -> CookieProtocol {
        let protocol = CookieProtocol::new(COOKIE);
        match self.clone() {
            Self::Plain => protocol,
            Self::Signed(key) => {
                protocol.id_from_value(move |value| Some(jar(value).signed(&key).get(COOKIE)?.value().into()))
            }
            Self::Private(key) => {
                protocol.id_from_value(move |value| Some(jar(value).private(&key).get(COOKIE)?.value().into()))
            }
        }
    }
}

impl fmt::Debug for Seal {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A jar with nothing but this cookie, as the client sent it.
fn jar(value: &str) -> CookieJar {
    let mut jar = CookieJar::new();
    jar.add_original(Cookie::new(COOKIE, value.to_owned()));
    jar
}
