//! The commands that the operations page of the guide shows.

const PAGE: &str = include_str!("../../src/guide/operations.md");

/// What follows this on each line of a command.
pub(crate) fn commands(start: &str) -> Vec<&'static str> {
    PAGE.lines()
        .filter_map(|line| Some(line.strip_prefix("$ ")?.strip_prefix(start)?.trim().trim_matches('"')))
        .collect()
}
