//! The format of the cookie's value: the id of `tower-sessions`, plain, signed or encrypted; and how to read it.

use std::fmt;

use tower_session_end::CookieProtocol;
use tower_sessions::cookie::{Cookie, CookieJar, Key};

/// The name of the cookie.
pub const COOKIE: &str = "sid";

/// The format of the id in the cookie.
#[derive(Clone)]
pub enum CookieFormat {
    /// The plain id.
    Plain,
    /// The id after its signature. A session always has the same value.
    Signed(Key),
    /// The encrypted id. A session has a new value each time the cookie is set.
    Private(Key),
}

impl CookieFormat {
    /// The name in the output.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Signed(_) => "signed",
            Self::Private(_) => "private",
        }
    }

    /// The protocol that reads the id of `tower-sessions` from a value of this format. A value with an invalid
    /// signature has no id.
    ///
    /// Without `id_from_value` the whole value would be the id. That works for a signed cookie. An encrypted one would
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

impl fmt::Debug for CookieFormat {
    /// Omits the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A jar with this cookie only, as the client sent it.
fn jar(value: &str) -> CookieJar {
    let mut jar = CookieJar::new();
    jar.add_original(Cookie::new(COOKIE, value.to_owned()));
    jar
}
