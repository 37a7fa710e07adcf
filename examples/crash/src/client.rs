//! A client of the gateway.

use std::net::SocketAddr;

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};

use crate::Error;

/// A client of one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    http: Http<HttpConnector, Body>,
}

impl Client {
    /// A client over HTTP/1 of the gateway at this address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, http: Http::builder(TokioExecutor::new()).build_http() }
    }

    /// A client over HTTP/2: its clones share one connection.
    #[must_use]
    pub fn http2(address: SocketAddr) -> Self {
        Self { address, http: Http::builder(TokioExecutor::new()).http2_only(true).build_http() }
    }

    /// Starts a session; returns the id from the response head.
    ///
    /// # Errors
    ///
    /// The gateway is not running, or does not answer with 200.
    pub async fn open(&self) -> Result<String, Error> {
        id_in(&self.post("/open", None).await?)
    }

    /// As [`open`](Self::open). The gateway answers once the session is recorded.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn open_recorded(&self) -> Result<String, Error> {
        id_in(&self.post("/open/recorded", None).await?)
    }

    /// Sends a request in a session.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn say(&self, id: &str) -> Result<(), Error> {
        self.post("/say", Some(id)).await.map(drop)
    }

    /// Ends a session.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn end(&self, id: &str) -> Result<(), Error> {
        self.post("/end", Some(id)).await.map(drop)
    }

    /// Compacts a session, and returns the id of its successor.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn compact(&self, id: &str) -> Result<String, Error> {
        id_in(&self.post("/compact", Some(id)).await?)
    }

    /// The active sessions of this gateway.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn sessions(&self) -> Result<Vec<String>, Error> {
        let (_, body) = self.ask(Method::GET, "/sessions", None).await?;
        Ok(str::from_utf8(&body)?.lines().map(str::to_owned).collect())
    }

    /// Makes the gateway kill itself; there is no answer.
    pub async fn die(&self) {
        let _ = self.post("/die", None).await;
    }

    async fn post(&self, path: &str, id: Option<&str>) -> Result<HeaderMap, Error> {
        self.ask(Method::POST, path, id).await.map(|(headers, _)| headers)
    }

    async fn ask(&self, method: Method, path: &str, id: Option<&str>) -> Result<(HeaderMap, Bytes), Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(id) = id {
            request = request.header("x-session-id", id);
        }
        let (head, body) = self.http.request(request.body(Body::empty())?).await?.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await?;
        match head.status {
            StatusCode::OK => Ok((head.headers, body)),
            status => Err(format!("{path}: {status}").into()),
        }
    }
}

fn id_in(headers: &HeaderMap) -> Result<String, Error> {
    Ok(headers.get("x-session-id").ok_or("the response has no session id")?.to_str()?.to_owned())
}
