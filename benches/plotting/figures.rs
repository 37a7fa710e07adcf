//! Every figure that there is: what it is called, what its axes mean, and how it is drawn.

use crate::scale::Scale;

/// How one figure looks.
#[derive(Debug)]
pub(crate) struct Figure {
    /// As the benchmark calls it.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What the values are, with their unit.
    pub(crate) values: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A group of bars at each place, from left to right.
    Bars,
    /// A line for each series; the places are numbers.
    Lines { places: &'static str, across: Scale, up: Scale },
}

impl Figure {
    /// A name for its file.
    pub(crate) fn file(&self) -> String {
        let words = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }
}

const fn bars(name: &'static str, title: &'static str, values: &'static str) -> Figure {
    Figure { name, title, values, kind: Kind::Bars }
}

const fn lines(
    name: &'static str,
    title: &'static str,
    (places, across): (&'static str, Scale),
    (values, up): (&'static str, Scale),
) -> Figure {
    Figure { name, title, values, kind: Kind::Lines { places, across, up } }
}

const LIVE: (&str, Scale) = ("live sessions", Scale::Log);
const UNDER_WAY: (&str, Scale) = ("births under way at a time", Scale::Log);

pub(crate) const FIGURES: [Figure; 20] = [
    bars(
        "instructions, 3 headers",
        "What a request with 3 headers costs over the bare service",
        "instructions over the bare service",
    ),
    bars(
        "instructions, 15 headers",
        "What a request with 15 headers costs over the bare service",
        "instructions over the bare service",
    ),
    bars("instructions a frame", "What the layer adds to a frame of a response body", "instructions a frame"),
    bars(
        "allocations, 3 headers",
        "What a request with 3 headers allocates over the bare service",
        "allocations over the bare service",
    ),
    bars(
        "allocations, 15 headers",
        "What a request with 15 headers allocates over the bare service",
        "allocations over the bare service",
    ),
    bars("drain: time", "How long a drain takes, with its budget of 2 s", "seconds, median of the runs"),
    bars("drain: ended", "How much of it a drain ends within its budget of 2 s", "sessions ended, % of those noted"),
    bars("note and end: rate", "Births and ends among a million live sessions, two threads", "pairs a second"),
    bars(
        "note and end: ratio",
        "Births and ends among a million live sessions, beside a bare table",
        "part of the rate of the bare table",
    ),
    bars(
        "server: rate",
        "A whole axum server, with the layer and without it",
        "requests a second, median of the turns",
    ),
    bars("server: wait", "What a request waits, with the layer and without it", "µs, median of the turns"),
    bars("server: processor", "Processor time of the server, with the layer and without it", "µs a request"),
    lines(
        "server: pairs",
        "Requests a second with a layer, in parts of those without one",
        ("round of turns", Scale::Linear),
        ("with / without", Scale::Near),
    ),
    lines(
        "growth: time",
        "What an operation takes as sessions grow in number",
        LIVE,
        ("nanoseconds an operation", Scale::Log),
    ),
    lines(
        "growth: memory",
        "Memory of an active session with an id of 36 bytes",
        LIVE,
        ("bytes a session", Scale::Linear),
    ),
    lines("growth: longest note", "The longest single note while the table grows", LIVE, ("microseconds", Scale::Log)),
    lines(
        "births: memory",
        "Resident memory while ten million sessions are born against a cap",
        ("births so far, millions", Scale::Millions),
        ("MB resident", Scale::Linear),
    ),
    lines("registries: births", "Births on record", UNDER_WAY, ("births a second", Scale::Log)),
    lines("registries: wait", "What a birth waits for its record (Strict)", UNDER_WAY, ("milliseconds", Scale::Log)),
    lines(
        "registries: group",
        "Group commit: births that one commit carries",
        UNDER_WAY,
        ("births a commit", Scale::Log),
    ),
];
