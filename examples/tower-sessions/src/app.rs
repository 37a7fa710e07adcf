//! The host, which knows nothing of this crate, and the layer around it or inside of it.

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
    seal::{COOKIE, Seal},
    store::Store,
};

/// The host as it is without the layer.
pub fn host(store: &Store, seal: &Seal) -> Router {
    with_sessions(routes(), store, seal)
}

/// The layer outside of `tower-sessions`: it sees every cookie that is set, and the host stays as it is. This is the
/// order to choose.
pub fn outside(sessions: &ActiveSessions, store: &Store, seal: &Seal) -> Router {
    outside_with(sessions, store, seal, seal.protocol())
}

/// As [`outside`], with a protocol that you have set up.
pub fn outside_with(sessions: &ActiveSessions, store: &Store, seal: &Seal, protocol: CookieProtocol) -> Router {
    host(store, seal).layer(sessions.layer_with(protocol))
}

/// The layer inside of `tower-sessions`. It cannot see the cookie, which is set when the response has left it. But it
/// can see the [`Session`] that `tower-sessions` puts into the request: `announce` says what becomes of it.
pub fn inside(sessions: &ActiveSessions, store: &Store, seal: &Seal) -> Router {
    let routes = routes().layer(from_fn(announce)).layer(sessions.layer_with(Announced));
    with_sessions(routes, store, seal)
}

/// The layer inside of `tower-sessions`, left alone with the cookies: it sees those of the requests only.
pub fn inside_with(sessions: &ActiveSessions, store: &Store, seal: &Seal, protocol: CookieProtocol) -> Router {
    with_sessions(routes().layer(sessions.layer_with(protocol)), store, seal)
}

/// A protocol that takes the request's id from where `tower-sessions` has put it. The responses say all by signals.
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

/// Says in a signal what the handler has made of the session. The id of a new one is made when it is saved, so that is
/// done here already, under the conditions under which `tower-sessions` would do it a moment later.
async fn announce(session: Session, request: Request, next: Next) -> Result<Response, StatusCode> {
    let before = session.id();
    let response = next.run(request).await;
    if session.is_modified() && !session.is_empty().await && !response.status().is_server_error() {
        session.save().await.map_err(internal)?;
    }
    let id = |id: Id| id.to_string();
    let signal = match (before.map(id), session.id().map(id)) {
        (None, Some(new)) => SessionUpdate::started(new),
        (Some(old), Some(new)) if old != new => {
            SessionId::new(old).map_or(SessionUpdate::empty(), |old| SessionUpdate::compacted(old, new))
        }
        (Some(old), None) => {
            SessionId::new(old).map_or(SessionUpdate::empty(), |old| SessionUpdate::ended(old, EndReason::Deleted))
        }
        (Some(_), Some(_)) | (None, None) => SessionUpdate::empty(),
    };
    Ok((signal, response).into_response())
}

fn with_sessions(routes: Router, store: &Store, seal: &Seal) -> Router {
    match store.clone() {
        Store::Memory(store) => sealed(routes, SessionManagerLayer::new(store), seal),
        Store::Sqlite(store) => sealed(routes, SessionManagerLayer::new(store), seal),
    }
}

fn sealed<S: SessionStore + Clone>(routes: Router, layer: SessionManagerLayer<S>, seal: &Seal) -> Router {
    match seal.clone() {
        Seal::Plain => set_up(routes, layer),
        Seal::Signed(key) => set_up(routes, layer.with_signed(key)),
        Seal::Private(key) => set_up(routes, layer.with_private(key)),
    }
}

fn set_up<S, C>(routes: Router, layer: SessionManagerLayer<S, C>) -> Router
where
    S: SessionStore + Clone,
    C: CookieController + Sync,
{
    let expiry = Expiry::OnInactivity(Duration::hours(1));
    // Not over TLS here, so that a cookie that is for TLS only would stay with its client.
    routes.layer(layer.with_name(COOKIE).with_expiry(expiry).with_secure(false))
}

fn routes() -> Router {
    Router::new()
        .route("/", get(who))
        .route("/public", get(async || "hello, whoever you are\n"))
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

/// A login that fails, and is counted in a session.
async fn attempt(session: Session) -> Result<StatusCode, StatusCode> {
    count(&session, "attempts").await?;
    Ok(StatusCode::UNAUTHORIZED)
}

/// `tower-sessions` saves nothing of what was done before an error, and sets no cookie.
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

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn internal(error: Error) -> StatusCode {
    eprintln!("the store: {error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
