//! Storms: choices that a seed repeats, and rounds.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Small, and good enough to choose.
pub(crate) struct Random(u64);

impl Random {
    /// Seeds that are neighbours differ from the first draw on.
    pub(crate) fn new(seed: u64) -> Self {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((mixed ^ (mixed >> 32)) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// One of so many times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A generator for another task.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.below(u64::MAX))
    }
}

/// One seed a round: three rounds, or `STORM_ROUNDS`, from `STORM_SEED` on.
pub(crate) fn storm_seeds() -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let first = number("STORM_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    (0..number("STORM_ROUNDS").unwrap_or(3)).map(move |n| first.wrapping_add(n))
}
