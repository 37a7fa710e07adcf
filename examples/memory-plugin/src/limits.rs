//! When a call may be sent: the limit on this side, and the time that the plugin has asked for.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum::http::HeaderValue;
use tokio::time::Instant;

/// The number of calls that are sent in a time: `300/60` is 300 in 60 s, the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimit {
    /// At most this number of calls, attempts included.
    pub calls: u64,
    /// In this time.
    pub time: Duration,
}

impl Default for CallLimit {
    fn default() -> Self {
        Self { calls: 300, time: Duration::from_secs(60) }
    }
}

impl FromStr for CallLimit {
    type Err = InvalidCallLimit;

    /// ```
    /// use memory_plugin::limits::CallLimit;
    ///
    /// assert_eq!("300/60".parse(), Ok(CallLimit::default()));
    /// assert!("300".parse::<CallLimit>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (calls, seconds) = text.split_once('/').ok_or(InvalidCallLimit)?;
        let positive = |number: &str| number.trim().parse().ok().filter(|number| *number > 0).ok_or(InvalidCallLimit);
        Ok(Self { calls: positive(calls)?, time: Duration::from_secs(positive(seconds)?) })
    }
}

/// The error of an invalid [`CallLimit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCallLimit;

impl fmt::Display for InvalidCallLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a number of calls and a number of seconds, such as 300/60")
    }
}

impl std::error::Error for InvalidCallLimit {}

/// The time before which the plugin wants no call: that of its last `Retry-After`. It holds for all calls.
#[derive(Clone, Debug)]
pub(crate) struct Pause(Arc<Mutex<Instant>>);

impl Pause {
    pub(crate) fn none() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn until(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Obeys the value of a `Retry-After`: seconds, or a date. Returns false if it is neither.
    pub(crate) fn obey(&self, value: &HeaderValue) -> bool {
        let wait = value.to_str().ok().and_then(wait_of);
        let until = wait.and_then(|wait| Instant::now().checked_add(wait));
        if let Some(until) = until {
            let mut pause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *pause = until.max(*pause);
        }
        until.is_some()
    }
}

fn wait_of(value: &str) -> Option<Duration> {
    let value = value.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_seconds_or_ends_at_a_date() {
        assert_eq!(wait_of("58"), Some(Duration::from_secs(58)));
        assert_eq!(wait_of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(wait_of(&date).is_some_and(|wait| (50..=60).contains(&wait.as_secs())), "{date}");
        for value in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(wait_of(value), None, "{value}");
        }
    }

    #[tokio::test]
    async fn the_longest_pause_counts_and_one_without_an_end_is_none() {
        let pause = Pause::none();
        assert!(pause.obey(&HeaderValue::from_static("60")));
        assert!(pause.obey(&HeaderValue::from_static("1")));
        assert!(pause.until() > Instant::now() + Duration::from_secs(50));
        assert!(!pause.obey(&HeaderValue::from_static("18446744073709551615")));
    }
}
