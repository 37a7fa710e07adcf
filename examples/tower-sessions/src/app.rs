//! The host, which has no code for this crate, and the layer outside or inside of `tower-sessions`.

use axum::{
    Router,
    extract::{Path, Request},
    http::{StatusCode, header::SET_COOKIE, request, response},
    middleware::{Next, from_fn},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use tower_session_end::{
    ActiveSessions, CookieProtocol, EndReason, RequestInfo, SessionId, SessionProtocol, SessionUpdate,
};
use tower_sessions::{
    Expiry, Session, SessionManagerLayer, SessionStore,
    cookie::time::Duration,
    service::CookieController,
    session::{Error, Id},
};

use crate::{
    cookie_format::{COOKIE, CookieFormat},
    store::Store,
};

/// The host without the layer.
pub fn host(store: &Store, format: &CookieFormat) -> Router {
    with_sessions(routes(), store, format)
}

/// The layer outside of `tower-sessions`: it sees every cookie that is set, and the host needs no change. This is the
/// recommended order.
pub fn outside(sessions: &ActiveSessions, store: &Store, format: &CookieFormat) -> Router {
    outside_with(sessions, store, format, format.protocol())
}

/// As [`outside`], with the given protocol.
pub fn outside_with(
    sessions: &ActiveSessions,
    store: &Store,
    format: &CookieFormat,
    protocol: CookieProtocol,
) -> Router {
    host(store, format).layer(sessions.layer_with(protocol))
}

/// The layer inside of `tower-sessions`. It cannot see the cookie, which is set after the layer has handled the
/// response. But the [`Session`] in the request's extensions is visible, and `announce` reports its changes.
pub fn inside(sessions: &ActiveSessions, store: &Store, format: &CookieFormat) -> Router {
    let routes = routes().layer(from_fn(announce)).layer(sessions.layer_with(Announced));
    with_sessions(routes, store, format)
}

/// The layer inside of `tower-sessions`, with cookies only: it sees those of the requests, and no `Set-Cookie`.
pub fn inside_with(
    sessions: &ActiveSessions,
    store: &Store,
    format: &CookieFormat,
    protocol: CookieProtocol,
) -> Router {
    with_sessions(routes().layer(sessions.layer_with(protocol)), store, format)
}

/// A protocol that reads the request's id from the extension of `tower-sessions`. Responses report changes with a
/// [`SessionUpdate`].
#[derive(Clone, Copy, Debug)]
struct Announced;

impl SessionProtocol for Announced {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        request.extensions.get::<Session>()?.id()?.to_string().parse().ok()
    }

    fn response(&self, _: &RequestInfo, _: &mut response::Parts) -> SessionUpdate {
        SessionUpdate::empty()
    }
}

/// Reports the change of the session with a [`SessionUpdate`]. A new session gets its id when it is saved, so
/// `announce` saves it, under the same conditions under which `tower-sessions` would do so afterwards.
async fn announce(session: Session, request: Request, next: Next) -> Result<Response, StatusCode> {
    let before = session.id();
    let response = next.run(request).await;
    if session.is_modified() && !session.is_empty().await && !response.status().is_server_error() {
        session.save().await.map_err(internal)?;
    }
    let id = |id: Id| id.to_string();
    let update = match (before.map(id), session.id().map(id)) {
        (None, Some(new)) => SessionUpdate::started(new),
        (Some(old), Some(new)) if old != new => {
            SessionId::new(old).map_or(SessionUpdate::empty(), |old| SessionUpdate::compacted(old, new))
        }
        (Some(old), None) => {
            SessionId::new(old).map_or(SessionUpdate::empty(), |old| SessionUpdate::ended(old, EndReason::Deleted))
        }
        (Some(_), Some(_)) | (None, None) => SessionUpdate::empty(),
    };
    Ok((update, response).into_response())
}

fn with_sessions(routes: Router, store: &Store, format: &CookieFormat) -> Router {
    match store.clone() {
        Store::Memory(store) => with_format(routes, SessionManagerLayer::new(store), format),
        Store::Sqlite(store) => with_format(routes, SessionManagerLayer::new(store), format),
    }
}

fn with_format<S: SessionStore + Clone>(
    routes: Router,
    layer: SessionManagerLayer<S>,
    format: &CookieFormat,
) -> Router {
    match format.clone() {
        CookieFormat::Plain => set_up(routes, layer),
        CookieFormat::Signed(key) => set_up(routes, layer.with_signed(key)),
        CookieFormat::Private(key) => set_up(routes, layer.with_private(key)),
    }
}

fn set_up<S, C>(routes: Router, layer: SessionManagerLayer<S, C>) -> Router
where
    S: SessionStore + Clone,
    C: CookieController + Sync,
{
    let expiry = Expiry::OnInactivity(Duration::hours(1));
    // The example runs without TLS, and a client would not send a `Secure` cookie.
    routes.layer(layer.with_name(COOKIE).with_expiry(expiry).with_secure(false))
}

fn routes() -> Router {
    Router::new()
        .route("/", get(who))
        .route("/public", get(async || "hello, visitor\n"))
        .route("/login/{user}", post(login))
        .route("/login/{user}/redirect", post(login_and_redirect))
        .route("/login/{user}/many", post(login_with_many_cookies))
        .route("/attempt", post(attempt))
        .route("/broken", post(broken))
        .route("/say", post(say))
        .route("/cycle", post(cycle))
        .route("/logout", post(logout))
}

async fn who(session: Session) -> Result<String, StatusCode> {
    let user: Option<String> = session.get("user").await.map_err(internal)?;
    Ok(user.unwrap_or_else(|| "nobody".to_owned()))
}

async fn login(session: Session, Path(user): Path<String>) -> Result<&'static str, StatusCode> {
    session.insert("user", user).await.map_err(internal)?;
    Ok("welcome\n")
}

async fn login_and_redirect(session: Session, user: Path<String>) -> Result<Redirect, StatusCode> {
    login(session, user).await?;
    Ok(Redirect::to("/"))
}

async fn login_with_many_cookies(session: Session, user: Path<String>) -> Result<impl IntoResponse, StatusCode> {
    login(session, user).await?;
    let others = ["theme=dark; Path=/", "sid2=x; Path=/", "lang=; Max-Age=0", "flash=sid=x; Path=/"];
    Ok((AppendHeaders(others.map(|cookie| (SET_COOKIE, cookie))), "welcome\n"))
}

/// A failed login, which is counted in a session.
async fn attempt(session: Session) -> Result<StatusCode, StatusCode> {
    count(&session, "attempts").await?;
    Ok(StatusCode::UNAUTHORIZED)
}

/// After an error, `tower-sessions` saves no changes and sets no cookie.
async fn broken(session: Session) -> Result<StatusCode, StatusCode> {
    count(&session, "broken").await?;
    Ok(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Changes the session, so that its cookie is set again.
async fn say(session: Session) -> Result<String, StatusCode> {
    let user: Option<String> = session.get("user").await.map_err(internal)?;
    let user = user.ok_or(StatusCode::UNAUTHORIZED)?;
    let said = count(&session, "said").await?;
    Ok(format!("{user} {said}"))
}

async fn cycle(session: Session) -> Result<&'static str, StatusCode> {
    session.cycle_id().await.map_err(internal)?;
    Ok("a new id\n")
}

async fn logout(session: Session) -> Result<&'static str, StatusCode> {
    session.flush().await.map_err(internal)?;
    Ok("goodbye\n")
}

async fn count(session: &Session, key: &str) -> Result<u32, StatusCode> {
    let count = session.get::<u32>(key).await.map_err(internal)?.unwrap_or_default() + 1;
    session.insert(key, count).await.map_err(internal)?;
    Ok(count)
}

#[allow(clippy::needless_pass_by_value, reason = "the signature that `map_err` needs")]
fn internal(error: Error) -> StatusCode {
    eprintln!("the store: {error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
