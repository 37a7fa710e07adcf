//! The lines that the benchmarks print for `plots`, one per point.

/// Prints a point of `figure`: its series, its position on the axis, its value.
pub(crate) fn point(figure: &str, series: &str, x: impl std::fmt::Display, value: f64) {
    println!("@\t{figure}\t{series}\t{x}\t{value}");
}
