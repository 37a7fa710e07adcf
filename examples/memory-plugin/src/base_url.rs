//! The URL of the plugin.

use std::{fmt, str::FromStr};

use axum::http::Uri;

/// The plugin's URL: `http`, a host, and optionally a port and a path prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    authority: String,
    /// Without a trailing slash.
    prefix: String,
}

impl BaseUrl {
    /// The whole URL of one of the plugin's paths.
    ///
    /// ```
    /// use memory_plugin::base_url::BaseUrl;
    ///
    /// let base: BaseUrl = "http://localhost:37777/memory/".parse()?;
    /// assert_eq!(base.at("/api/sessions/init")?, "http://localhost:37777/memory/api/sessions/init");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if `path` is not a valid path.
    pub fn at(&self, path: &str) -> Result<Uri, InvalidBaseUrl> {
        self.at_path(path).parse().map_err(|_| InvalidBaseUrl("the path is not valid"))
    }

    fn at_path(&self, path: &str) -> String {
        let Self { authority, prefix } = self;
        format!("http://{authority}{prefix}{path}")
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.at_path("/"))
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidBaseUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `Uri` drops a fragment silently.
        if text.contains(['?', '#']) {
            return Err(InvalidBaseUrl("it has a query or a fragment"));
        }
        let uri: Uri = text.parse().map_err(|_| InvalidBaseUrl("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(InvalidBaseUrl("https is not supported, only http")),
            Some(_) | None => return Err(InvalidBaseUrl("it does not begin with http://")),
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or(InvalidBaseUrl("it has no host"))?.as_str();
        if authority.contains('@') {
            return Err(InvalidBaseUrl("it has a user or a password, which would not be sent"));
        }
        let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(InvalidBaseUrl("its port is not valid"));
        }
        Ok(Self { authority: authority.to_owned(), prefix: uri.path().trim_end_matches('/').to_owned() })
    }
}

/// The error of an invalid [`BaseUrl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBaseUrl(&'static str);

impl fmt::Display for InvalidBaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the URL of a plugin, such as http://127.0.0.1:37777: {}", self.0)
    }
}

impl std::error::Error for InvalidBaseUrl {}
