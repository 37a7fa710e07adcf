//! [`CookieProtocol`]: the id in a cookie.

use std::{borrow::Cow, fmt, sync::Arc};

use cookie::{
    Cookie,
    time::{Duration, OffsetDateTime},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{COOKIE, SET_COOKIE},
    request, response,
};

use super::{RequestInfo, SessionProtocol, SessionUpdate, adopted};
use crate::session::{EndReason, Session, SessionId};

/// Sessions in a cookie.
///
/// | `set-cookie` of the named cookie | meaning |
/// |---|---|
/// | a new value | a birth |
/// | a new value, to a request that carried the value of another active session | a rotation: that one is compacted into the new one |
/// | the value that the request carried | nothing new, if the session is active; else a birth |
/// | removed: `Max-Age=0`, an `Expires` in the past, or an empty value | the request's session ended, with reason `deleted` |
///
/// Every status counts, as it does for a browser: a redirect after a login, and also a 401 that sets a cookie. What the
/// client holds is a session, and only a later removal ends it. Put the layer outside of whatever sets the cookie, or
/// it never sees it.
///
/// # The id
///
/// The id is the value as it stands in the cookie: not percent-decoded, and without a pair of quotes around it. Of a
/// signed cookie that is the signature too, and an encrypted value is another one each time it is set, although the
/// session is not: give such a protocol a reader, with [`id_from`](Self::id_from_value). A value is a credential, so no log of
/// this crate shows all of it.
///
/// # Cookies that come twice
///
/// * In a response: of those with the same path and domain the last one counts, as it does for a browser. A removal
///   beside a value that is set at another path clears up only.
/// * In a request: values that are no ids are ignored. Two different ids are ambiguous, and the request has none.
///
/// A cookie that does not parse is ignored.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, CookieProtocol};
///
/// let sessions = ActiveSessions::builder().build()?;
/// let layer = sessions.layer_with(CookieProtocol::new("sid"));
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone)]
pub struct CookieProtocol {
    name: Cow<'static, str>,
    max_id_len: usize,
    adopt: bool,
    read: Option<Reader>,
}

type Reader = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

impl CookieProtocol {
    /// The protocol for the cookie with this name, which is case-sensitive; ids of up to 4096 bytes, which is as much
    /// as a browser keeps.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), max_id_len: 4096, adopt: false, read: None }
    }

    /// The longest id that counts, in bytes; 4096 by default.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = CookieProtocol::new("sid").max_id_len(64);
    /// ```
    #[must_use]
    pub const fn max_id_len(mut self, bytes: usize) -> Self {
        self.max_id_len = bytes;
        self
    }

    /// How the id is read from the value; by default the value is the id. `None` for a value in which there is no id,
    /// such as one whose signature is wrong.
    ///
    /// It is called for each request and response with the cookie, so it should be quick; where it panics, that head says
    /// nothing.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// // `<id>.<signature>`
    /// let protocol = CookieProtocol::new("sid").id_from_value(|value| Some(value.split_once('.')?.0.to_owned()));
    /// ```
    #[must_use]
    pub fn id_from_value(mut self, read: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.read = Some(Arc::new(read));
        self
    }

    /// Whether a success (101 or 2xx) that says nothing of the cookie notes the session whose id the request carried,
    /// if it is not active. Off by default.
    ///
    /// For hosts that go on with sessions made elsewhere, or before a restart, and set no cookie again. A redirect notes
    /// nothing, because it may well lead to the login; nor does a `DELETE`, because it may well be the end; nor a response
    /// to which a handler has attached a [`SessionUpdate`], which says more.
    ///
    /// The host has to refuse or remove ids that it does not know. If it answers 200 to anything, a client that makes
    /// up ids makes up sessions; an [`id_from`](Self::id_from_value) that checks a signature keeps it from that.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = CookieProtocol::new("sid").adopt(true);
    /// ```
    #[must_use]
    pub const fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    fn id(&self, cookie: &Cookie<'_>) -> Option<SessionId> {
        let value = cookie.value_trimmed();
        let id = match &self.read {
            Some(read) => Cow::Owned(read(value)?),
            None => Cow::Borrowed(value),
        };
        SessionId::from_bytes(id.as_bytes(), self.max_id_len).ok()
    }

    /// What becomes of the client's cookie.
    fn change(&self, headers: &HeaderMap) -> CookieChange {
        let parse = |value| Cookie::parse(text(value)).ok().filter(|cookie| cookie.name() == self.name);
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().filter_map(parse).collect();
        let mut change = CookieChange::Nothing;
        for (n, cookie) in cookies.iter().enumerate().rev() {
            if cookies[n + 1..].iter().any(|later| takes_the_place_of(later, cookie)) {
                continue;
            }
            if !is_removal(cookie) {
                return self.id(cookie).map_or(CookieChange::SetInvalid, CookieChange::Set);
            }
            change = CookieChange::Removed;
        }
        change
    }
}

enum CookieChange {
    Nothing,
    Removed,
    Set(SessionId),
    /// An id that is not valid, or none by the reader.
    SetInvalid,
}

/// Bytes that are no text make no id; the other cookies beside them are none the worse.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// A client keeps one value for each name, path and domain.
fn takes_the_place_of(later: &Cookie<'_>, cookie: &Cookie<'_>) -> bool {
    let domain = |cookie: &Cookie<'_>| cookie.domain().map(str::to_ascii_lowercase);
    later.path() == cookie.path() && domain(later) == domain(cookie)
}

fn is_removal(cookie: &Cookie<'_>) -> bool {
    let is_over = match (cookie.max_age(), cookie.expires_datetime()) {
        (Some(age), _) => age <= Duration::ZERO,
        (None, Some(expires)) => expires <= OffsetDateTime::now_utc(),
        (None, None) => false,
    };
    is_over || cookie.value_trimmed().is_empty()
}

impl SessionProtocol for CookieProtocol {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        let mut found = None;
        // HTTP/2 clients send them in pieces.
        let cookies = request.headers.get_all(COOKIE).iter().flat_map(|value| Cookie::split_parse(text(value)));
        for cookie in cookies.flatten().filter(|cookie| cookie.name() == self.name) {
            let Some(id) = self.id(&cookie) else { continue };
            if found.as_ref().is_some_and(|before| *before != id) {
                return None;
            }
            found = Some(id);
        }
        found
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        match (self.change(&response.headers), &request.id) {
            (CookieChange::Nothing, _) if self.adopt && is_success(response.status) => adopted(request, response),
            (CookieChange::Nothing, _) | (CookieChange::Removed, None) => SessionUpdate::empty(),
            (CookieChange::Removed, Some(id)) => SessionUpdate::ended(id.clone(), EndReason::Deleted),
            (CookieChange::SetInvalid, _) => SessionUpdate::invalid_id(),
            (CookieChange::Set(id), Some(old)) if request.is_tracked => {
                if id == *old {
                    SessionUpdate::empty()
                } else {
                    SessionUpdate::compacted(old.clone(), Session::new(id))
                }
            }
            (CookieChange::Set(id), _) => SessionUpdate::started(Session::new(id)),
        }
    }
}

fn is_success(status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || status.is_success()
}

impl fmt::Debug for CookieProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, max_id_len, adopt, read: _ } = self;
        f.debug_struct("CookieProtocol")
            .field("name", name)
            .field("max_id_len", max_id_len)
            .field("adopt", adopt)
            .finish_non_exhaustive()
    }
}
