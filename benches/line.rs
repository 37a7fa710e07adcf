//! What the benchmarks print for `plots` to read: one line a point.

/// A point of a figure: `figure`, the series that it belongs to, its place on the axis, its value.
pub(crate) fn point(figure: &str, series: &str, x: impl std::fmt::Display, value: f64) {
    println!("@\t{figure}\t{series}\t{x}\t{value}");
}
