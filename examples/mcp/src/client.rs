//! rmcp's own client.

use std::net::SocketAddr;

use rmcp::{
    ClientLifecycleMode, ClientServiceExt, RoleClient,
    model::{CallToolRequestParams, CallToolResult},
    service::{ClientInitializeError, RunningService, ServiceError},
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Value, json};

/// A connected client. Its `cancel` sends the DELETE.
pub type Connected = RunningService<RoleClient, ()>;

/// Connects to a server by [`serve`](crate::serve), with `initialize` or as a client of the 2026-07-28 revision.
///
/// # Errors
///
/// If the server is unreachable, or refuses.
pub async fn connect(address: SocketAddr, lifecycle: ClientLifecycleMode) -> Result<Connected, ClientInitializeError> {
    // The same client as rmcp's default, but without a proxy: the server is on this machine.
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap_or_default();
    let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{address}/mcp"));
    ().serve_with_lifecycle(StreamableHttpClientTransport::with_client(http, config), lifecycle).await
}

/// Calls one of the [`Tools`](crate::Tools), and returns the text of its answer.
///
/// # Errors
///
/// If the call has no answer.
pub async fn call(client: &Connected, tool: &'static str, arguments: Value) -> Result<String, ServiceError> {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    let result = client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments)).await?;
    Ok(text(&result))
}

fn text(result: &CallToolResult) -> String {
    let content = json!(result.content);
    content[0]["text"].as_str().unwrap_or_default().to_owned()
}
