//! A client with a cookie jar, as a browser has one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client, StatusCode, Url,
    cookie::{CookieStore, Jar},
};
use tower_session_end::BoxError;

use crate::seal::COOKIE;

/// One user's browser.
#[derive(Clone, Debug)]
pub struct Visitor {
    address: SocketAddr,
    client: Client,
    jar: Arc<Jar>,
}

impl Visitor {
    /// One with an empty jar.
    ///
    /// # Errors
    ///
    /// If there can be no client on this system.
    pub fn new(address: SocketAddr) -> Result<Self, BoxError> {
        let jar = Arc::new(Jar::default());
        let client = Client::builder().cookie_provider(Arc::clone(&jar)).no_proxy().timeout(Duration::from_secs(60));
        Ok(Self { address, client: client.build()?, jar })
    }

    /// The same browser, and the server is another one now. Cookies do not care for ports.
    #[must_use]
    pub fn moved_to(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// # Errors
    ///
    /// If there is no answer.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, String), BoxError> {
        let response = self.client.get(self.url(path)?).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// # Errors
    ///
    /// If there is no answer.
    pub async fn post(&self, path: &str) -> Result<(StatusCode, String), BoxError> {
        let response = self.client.post(self.url(path)?).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// What the session's cookie holds, if there is one in the jar.
    ///
    /// # Errors
    ///
    /// If the address makes no URL, or the cookies no text.
    pub fn cookie(&self) -> Result<Option<String>, BoxError> {
        let Some(cookies) = self.jar.cookies(&self.url("/")?) else { return Ok(None) };
        let mut cookies = cookies.to_str()?.split("; ").filter_map(|cookie| cookie.split_once('='));
        Ok(cookies.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned()))
    }

    /// Puts such a cookie into the jar, as somebody would who makes one up.
    ///
    /// # Errors
    ///
    /// If the address makes no URL.
    pub fn make_up(&self, value: &str) -> Result<(), BoxError> {
        self.jar.add_cookie_str(&format!("{COOKIE}={value}"), &self.url("/")?);
        Ok(())
    }

    fn url(&self, path: &str) -> Result<Url, BoxError> {
        Ok(format!("http://{}{path}", self.address).parse()?)
    }
}
