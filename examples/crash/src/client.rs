//! A client of the gateway.

use std::net::SocketAddr;

use reqwest::header::HeaderMap;

use crate::Error;

/// Talks to one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    http: reqwest::Client,
}

impl Client {
    /// A client of the gateway at this address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, http: reqwest::Client::new() }
    }

    /// Opens a session; its id stands in the response's head.
    ///
    /// # Errors
    ///
    /// The gateway is gone, or answers with anything but 200.
    pub async fn open(&self) -> Result<String, Error> {
        id_in(&self.post("/open", None).await?)
    }

    /// A request in a session.
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

    /// The sessions that this gateway holds.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub async fn sessions(&self) -> Result<Vec<String>, Error> {
        let response = self.http.get(format!("http://{}/sessions", self.address)).send().await?;
        Ok(response.error_for_status()?.text().await?.lines().map(str::to_owned).collect())
    }

    /// Tells the gateway to kill itself: there is no answer.
    pub async fn die(&self) {
        let _ = self.post("/die", None).await;
    }

    async fn post(&self, path: &str, id: Option<&str>) -> Result<HeaderMap, Error> {
        let mut request = self.http.post(format!("http://{}{path}", self.address));
        if let Some(id) = id {
            request = request.header("x-session-id", id);
        }
        Ok(request.send().await?.error_for_status()?.headers().clone())
    }
}

fn id_in(headers: &HeaderMap) -> Result<String, Error> {
    Ok(headers.get("x-session-id").ok_or("no id")?.to_str()?.to_owned())
}
