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
/// | a new value | the session starts |
/// | a new value, and the request carried another active id | a rotation: the old id is compacted into the new one |
/// | the request's value | no change if the session is active; otherwise it starts |
/// | removal: `Max-Age=0`, a past `Expires`, or an empty value | the request's session ended, with reason `deleted` |
///
/// Every status counts, as in a browser: also a redirect after a login, and a 401 that sets a cookie. The client has
/// the cookie then, and only its removal ends the session. Put the layer outside the service that sets the cookie, so
/// that it sees the header.
///
/// # The id
///
/// The id is the raw value: not percent-decoded, and without the quotes around it. The value of a signed cookie
/// contains the signature, and an encrypted value changes each time it is set, although the session stays the same.
/// Read the id of such a cookie with [`id_from_value`](Self::id_from_value). A value is a credential, so logs of this
/// crate show a prefix of it at most.
///
/// # Duplicate cookies
///
/// * In a response, the last one with the same path and domain counts, as in a browser. A removal at one path is
///   ignored if a value is set at another.
/// * In a request, values that are not valid ids are ignored. Of several different ids, the first whose session is active
///   counts: a browser sends one value for each path. If none is active, they are ambiguous, and the request has no id.
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
    /// The protocol for the cookie with this case-sensitive name, and ids of up to 4096 bytes: the most that browsers
    /// keep.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), max_id_len: 4096, adopt: false, read: None }
    }

    /// The longest valid id, in bytes. Default: 4096. A longer one is ignored like any invalid id.
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

    /// Reads the id from the cookie's value. By default the value is the id. Return `None` for a value without a valid
    /// id, such as one with a wrong signature. A response that sets such a value
    /// starts nothing, and is counted in [`ignored_ids`](crate::ActiveSessions::ignored_ids).
    ///
    /// It is called for each request and response with the cookie, so it must not block. If it panics, that head counts
    /// as one without the cookie.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// // `<id>.<signature>`; a real reader verifies the signature.
    /// let protocol = CookieProtocol::new("sid").id_from_value(|value| Some(value.split_once('.')?.0.to_owned()));
    /// ```
    #[must_use]
    pub fn id_from_value(mut self, read: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.read = Some(Arc::new(read));
        self
    }

    /// Whether a response with status 101 or 2xx that does not set the cookie notes the session of the request's id.
    /// Default: `false`.
    ///
    /// For hosts that continue sessions of another process, or of the time before a restart, without setting the
    /// cookie again. Nothing is noted by a redirect, which may lead to the login, by a response to `DELETE`, which
    /// may have ended the session, and by a response with a [`SessionUpdate`] of the handler, which takes precedence.
    ///
    /// The host has to refuse or remove unknown ids. If it answers 200 to any id, clients can start sessions with ids
    /// that they invent. An [`id_from_value`](Self::id_from_value) that verifies a signature prevents that.
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

    /// What the response does to the client's cookie.
    fn change(&self, headers: &HeaderMap) -> CookieChange {
        let parse = |value| Cookie::parse(text(value)).ok().filter(|cookie| cookie.name() == self.name);
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().filter_map(parse).collect();
        let mut change = CookieChange::Nothing;
        for (n, cookie) in cookies.iter().enumerate().rev() {
            if cookies[n + 1..].iter().any(|later| replaces(later, cookie)) {
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
    /// To a value without a valid id.
    SetInvalid,
}

/// Non-UTF-8 bytes never form an id; other cookies in the header still parse.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// Clients keep one value for each name, path and domain.
fn replaces(later: &Cookie<'_>, cookie: &Cookie<'_>) -> bool {
    let domain = |cookie: &Cookie<'_>| cookie.domain().map(str::to_ascii_lowercase);
    later.path() == cookie.path() && domain(later) == domain(cookie)
}

fn is_removal(cookie: &Cookie<'_>) -> bool {
    let is_expired = match (cookie.max_age(), cookie.expires_datetime()) {
        (Some(age), _) => age <= Duration::ZERO,
        (None, Some(expires)) => expires <= OffsetDateTime::now_utc(),
        (None, None) => false,
    };
    is_expired || cookie.value_trimmed().is_empty()
}

impl SessionProtocol for CookieProtocol {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.request_id_among(request, &|_| false)
    }

    fn request_id_among(&self, request: &request::Parts, is_tracked: &dyn Fn(&SessionId) -> bool) -> Option<SessionId> {
        // HTTP/2 clients may split the header into several.
        let cookies = request.headers.get_all(COOKIE).iter().flat_map(|value| Cookie::split_parse(text(value)));
        let named = cookies.flatten().filter(|cookie| cookie.name() == self.name);
        let mut ids = named.filter_map(|cookie| self.id(&cookie));
        let first = ids.next()?;
        let Some(other) = ids.find(|id| *id != first) else { return Some(first) };
        // A browser sends one value for each path.
        [first, other].into_iter().chain(ids).find(|id| is_tracked(id))
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
