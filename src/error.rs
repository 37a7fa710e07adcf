//! [`BoxError`].

/// A type-erased error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
