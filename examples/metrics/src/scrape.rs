//! Parses the output of an exporter.

use std::collections::BTreeMap;

use tower_session_end::BoxError;

/// The samples of one scrape, by name and labels.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// `name{labels}` and its value.
    pub samples: BTreeMap<String, f64>,
    /// The kind of each metric.
    pub kinds: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads the text format.
    ///
    /// # Errors
    ///
    /// If a line is not in that format.
    pub fn parse(text: &str) -> Result<Self, BoxError> {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').ok_or_else(|| format!("a line without a kind: {line}"))?;
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').ok_or_else(|| format!("a line without a value: {line}"))?;
                scrape.samples.insert(sample.to_owned(), value.parse()?);
            }
        }
        Ok(scrape)
    }

    /// One sample; 0 if there is none.
    #[must_use]
    pub fn value(&self, sample: &str) -> f64 {
        self.samples.get(sample).copied().unwrap_or_default()
    }

    /// The sum of all samples of a metric, over all labels.
    #[must_use]
    pub fn sum(&self, metric: &str) -> f64 {
        let of_it = |sample: &&String| sample.split('{').next() == Some(metric);
        self.samples.iter().filter(|(sample, _)| of_it(sample)).map(|(_, value)| value).sum()
    }

    /// Checks the invariant when idle: starts + recovered = active + ends + releases.
    ///
    /// # Errors
    ///
    /// If the sums differ.
    pub fn balances(&self) -> Result<(), BoxError> {
        let came = self.sum("session_starts_total") + self.sum("session_recovered_total");
        let went = self.sum("session_ends_total") + self.sum("session_releases_total");
        let active = self.sum("session_active");
        if came == active + went {
            Ok(())
        } else {
            Err(format!("{came} started or recovered, {went} ended or released, {active} active").into())
        }
    }
}
