//! A client of the gateway.

use std::net::SocketAddr;

use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::within;

/// A client that reuses its connections.
#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// The status, and the session id in the head.
type Answer = (StatusCode, Option<String>);

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, http: HttpClient::builder(TokioExecutor::new()).build_http() }
    }

    async fn try_send(&self, method: Method, path: &str, id: Option<&str>, body: String) -> Result<Answer, Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(id) = id {
            request = request.header("x-session-id", id);
        }
        let request = request.header("content-type", "application/json").body(Full::from(body)).unwrap();
        let response = self.http.request(request).await?;
        let id = response.headers().get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
        let status = response.status();
        // The body may be incomplete: only the head counts here.
        let _ = response.into_body().collect().await;
        Ok((status, id))
    }

    pub(crate) async fn try_chat(&self, id: Option<&str>, message: &str) -> Result<Answer, Error> {
        let body = json!({ "message": message, "project": "tests" }).to_string();
        self.try_send(Method::POST, "/chat", id, body).await
    }

    async fn send(&self, method: Method, path: &str, id: &str) -> Answer {
        within(path, self.try_send(method, path, Some(id), String::new())).await.unwrap()
    }

    /// Starts a session with this prompt.
    pub(crate) async fn open(&self, prompt: &str) -> String {
        let (status, id) = within("open", self.try_chat(None, prompt)).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        id.expect("a new session must have an id")
    }

    /// Continues or resumes a session.
    pub(crate) async fn chat(&self, id: &str, message: &str) {
        let answer = within("chat", self.try_chat(Some(id), message)).await.unwrap();
        assert_eq!(answer, (StatusCode::OK, Some(id.to_owned())));
    }

    pub(crate) async fn compact(&self, id: &str) -> String {
        let (status, id) = self.send(Method::POST, "/compact", id).await;
        assert_eq!(status, StatusCode::OK);
        id.expect("a successor must have an id")
    }

    pub(crate) async fn delete(&self, id: &str) {
        assert_eq!(self.send(Method::DELETE, "/session", id).await.0, StatusCode::NO_CONTENT);
    }
}

/// Starts sessions, and compacts, deletes and resumes them, until the gateway exits. Sends the ids that it receives.
pub(crate) async fn busy_client(client: Client, seen: mpsc::UnboundedSender<String>) {
    for round in 0.. {
        let Ok((StatusCode::OK, Some(id))) = client.try_chat(None, "hello").await else { return };
        let _ = seen.send(id.clone());
        let next = match round % 4 {
            0 => client.try_send(Method::POST, "/compact", Some(&id), String::new()).await,
            1 => client.try_send(Method::DELETE, "/session", Some(&id), String::new()).await,
            _ => client.try_chat(Some(&id), "again").await,
        };
        let Ok((_, successor)) = next else { return };
        successor.into_iter().for_each(|id| drop(seen.send(id)));
        if round % 8 == 1 && client.try_chat(Some(&id), "and again").await.is_err() {
            return;
        }
    }
}
