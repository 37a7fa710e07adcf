//! Helpers of the benchmarks without criterion: a description of the machine, memory of the process, and the spread of
//! runs.
#![allow(dead_code, reason = "each benchmark uses a part of this module")]

use std::{error::Error, fs, process::Command};

pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The machine and the compiler.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let rustc = Command::new("rustc").arg("--version").output().map_or_else(|_| Vec::new(), |output| output.stdout);
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{cores} cores, {model}, {}", String::from_utf8_lossy(&rustc).trim())
}

/// A value of `/proc/self/status`, in bytes: `VmRSS` is the resident size, `VmHWM` its maximum so far.
pub(crate) fn memory(name: &str) -> Fallible<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN);
    Ok(kib * 1024.0)
}

/// The values of several runs, sorted.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The quantile `part` (0 to 1) of the values; `NaN` if there are none.
    pub(crate) fn at(&self, part: f64) -> f64 {
        let place = (self.0.len() as f64 * part) as usize;
        self.0.get(place.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn min(&self) -> f64 {
        self.at(0.0)
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub(crate) fn max(&self) -> f64 {
        self.at(1.0)
    }
}
