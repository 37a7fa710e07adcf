//! A client with a cookie jar, like a browser.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client, StatusCode, Url,
    cookie::{CookieStore, Jar},
};
use tower_session_end::BoxError;

use crate::cookie_format::COOKIE;

/// One user's browser.
#[derive(Clone, Debug)]
pub struct Visitor {
    address: SocketAddr,
    client: Client,
    jar: Arc<Jar>,
}

impl Visitor {
    /// A browser with an empty jar.
    ///
    /// # Errors
    ///
    /// If the client cannot be created on this system.
    pub fn new(address: SocketAddr) -> Result<Self, BoxError> {
        let jar = Arc::new(Jar::default());
        let client = Client::builder().cookie_provider(Arc::clone(&jar)).no_proxy().timeout(Duration::from_secs(60));
        Ok(Self { address, client: client.build()?, jar })
    }

    /// The same browser, for a server at another address. Cookies do not depend on the port.
    #[must_use]
    pub fn moved_to(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, String), BoxError> {
        let response = self.client.get(self.url(path)?).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn post(&self, path: &str) -> Result<(StatusCode, String), BoxError> {
        let response = self.client.post(self.url(path)?).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// The value of the session's cookie, if it is in the jar.
    ///
    /// # Errors
    ///
    /// If the address is not a valid URL, or the cookies are not text.
    pub fn cookie(&self) -> Result<Option<String>, BoxError> {
        let Some(cookies) = self.jar.cookies(&self.url("/")?) else { return Ok(None) };
        let mut cookies = cookies.to_str()?.split("; ").filter_map(|cookie| cookie.split_once('='));
        Ok(cookies.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned()))
    }

    /// Puts a forged cookie into the jar.
    ///
    /// # Errors
    ///
    /// If the address is not a valid URL.
    pub fn forge(&self, value: &str) -> Result<(), BoxError> {
        self.jar.add_cookie_str(&format!("{COOKIE}={value}"), &self.url("/")?);
        Ok(())
    }

    fn url(&self, path: &str) -> Result<Url, BoxError> {
        Ok(format!("http://{}{path}", self.address).parse()?)
    }
}
