//! The list of figures: the title, the axes and the form of each.

use crate::scale::Scale;

/// The layout of one figure.
#[derive(Debug)]
pub(crate) struct Figure {
    /// The name that the benchmark prints.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The meaning and the unit of the values.
    pub(crate) values: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A group of horizontal bars per position.
    Bars,
    /// A line per series; the positions are numbers.
    Lines { places: &'static str, across: Scale, up: Scale },
}

impl Figure {
    /// The name of its file.
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
const CONCURRENT: (&str, Scale) = ("concurrent starts", Scale::Log);

pub(crate) const FIGURES: [Figure; 21] = [
    bars(
        "instructions, 3 headers",
        "Instructions that a layer adds to a request with 3 headers",
        "instructions over the bare service",
    ),
    bars(
        "instructions, 15 headers",
        "Instructions that a layer adds to a request with 15 headers",
        "instructions over the bare service",
    ),
    bars(
        "instructions a frame",
        "Instructions that the layer adds to a frame of a response body",
        "instructions per frame",
    ),
    bars(
        "allocations, 3 headers",
        "Allocations that a layer adds to a request with 3 headers",
        "allocations over the bare service",
    ),
    bars(
        "allocations, 15 headers",
        "Allocations that a layer adds to a request with 15 headers",
        "allocations over the bare service",
    ),
    bars("drain: time", "Time of a drain with a budget of 2 s", "seconds, median of the runs"),
    bars("drain: ended", "Sessions that a drain ends within its budget of 2 s", "sessions ended, % of those noted"),
    lines(
        "drain: over time",
        "A shutdown with 10,000 sessions, whose hooks take 10 ms each",
        ("seconds since the drain began; its budget is 2 s", Scale::Linear),
        ("sessions ended", Scale::Linear),
    ),
    bars("note and end: rate", "Starts and ends among a million live sessions, two threads", "pairs per second"),
    bars(
        "note and end: ratio",
        "Starts and ends among a million live sessions, relative to a bare table",
        "relative to the rate of the bare table",
    ),
    bars(
        "server: rate",
        "A whole axum server, with the layer and without it",
        "requests per second, median of the turns",
    ),
    bars("server: wait", "Latency of a request, with the layer and without it", "µs, median of the turns"),
    bars("server: processor", "CPU time of the server, with the layer and without it", "µs per request"),
    lines(
        "server: pairs",
        "Requests per second with a layer, relative to those without one",
        ("round of turns", Scale::Linear),
        ("with / without", Scale::Near),
    ),
    lines(
        "growth: time",
        "Time of an operation as the number of sessions grows",
        LIVE,
        ("nanoseconds per operation", Scale::Log),
    ),
    lines(
        "growth: memory",
        "Memory of an active session with an id of 36 bytes",
        LIVE,
        ("bytes per session", Scale::Linear),
    ),
    lines("growth: longest note", "The longest single note while the table grows", LIVE, ("microseconds", Scale::Log)),
    lines(
        "max_sessions: memory",
        "Resident memory while ten million sessions start against a cap",
        ("starts so far, millions", Scale::Millions),
        ("MB resident", Scale::Linear),
    ),
    lines("registries: starts", "Recorded starts", CONCURRENT, ("starts per second", Scale::Log)),
    lines(
        "registries: wait",
        "Time until the start of a session is recorded (Strict)",
        CONCURRENT,
        ("milliseconds", Scale::Log),
    ),
    lines("registries: group", "Group commit: starts per commit", CONCURRENT, ("starts per commit", Scale::Log)),
];
