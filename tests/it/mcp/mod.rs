//! The sessions of MCP: what opens, what ends, what is adopted, and what does none of it.

mod adoption;
mod ids;
mod late;
mod rules;

use crate::support::{Recorder, answer, exchange};
use http::{Method, Request};
use tower_session_end::{ActiveSessions, McpProtocol, SessionLayer};

const ID: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "MCP"];
const STATUSES: [u16; 20] =
    [100, 101, 200, 201, 202, 204, 206, 301, 304, 400, 401, 403, 404, 405, 406, 409, 410, 429, 500, 503];

/// A request with a method and these headers.
fn ask(method: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = crate::support::ask(headers);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    request
}

/// One exchange.
async fn say(layer: &SessionLayer, method: &str, request: &[(&str, &str)], status: u16, response: &[(&str, &str)]) {
    let response = exchange(layer, ask(method, request), answer(status, response)).await;
    assert_eq!(response.status().as_u16(), status);
}

fn mcp() -> (Recorder, ActiveSessions, SessionLayer) {
    with(McpProtocol::new())
}

fn with(protocol: McpProtocol) -> (Recorder, ActiveSessions, SessionLayer) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(protocol);
    (recorder, sessions, layer)
}
