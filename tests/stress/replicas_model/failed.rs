//! Sequences that have failed once, as proptest has shrunk them: `failed.txt` has one in each line, after its `max_sessions`. A seed
//! would stand for another sequence once a step is added.
//!
//! `REPLAY="2 [(0, Note(0)), (1, Crash)]" cargo test --test stress replicas_model::failed` runs one sequence 100 times.

use super::{run_paused, steps::Step};
use crate::support::store::Fault;

/// Reads a line as proptest prints it.
fn parse(line: &str) -> Option<(Vec<(usize, Step)>, usize)> {
    let (max_sessions, steps) = line.split_once(' ')?;
    let steps = steps.trim().strip_prefix("[(")?.strip_suffix(")]")?;
    let steps = steps.split("), (").map(parse_step).collect::<Option<_>>()?;
    Some((steps, max_sessions.parse().ok()?))
}

fn parse_step(text: &str) -> Option<(usize, Step)> {
    let (slot, step) = text.split_once(", ")?;
    let (name, arguments) = step.split_once('(').unwrap_or((step, ""));
    let arguments: Vec<_> = arguments.trim_end_matches(')').split(", ").collect();
    let first = arguments[0];
    let id = || first.parse().ok();
    let step = match name {
        "Note" => Step::Note(id()?),
        "Durable" => Step::Durable(id()?),
        "Head" => Step::Head(id()?),
        "Request" => Step::Request(id()?),
        "End" => Step::End(id()?),
        "Forget" => Step::Forget(id()?),
        "Compact" => Step::Compact(id()?, arguments.get(1)?.parse().ok()?),
        "Guard" => Step::Guard(id()?),
        "DropGuard" => Step::DropGuard(first.parse().ok()?),
        "Wait" => Step::Wait(first.parse().ok()?),
        "Silence" => Step::Silence,
        "Recover" => Step::Recover,
        "Drive" => Step::Drive(first.parse().ok()?),
        "Restart" => Step::Restart,
        "HalfADrain" => Step::HalfADrain(first.parse().ok()?),
        "Crash" => Step::Crash,
        "Stall" => Step::Stall,
        "Doubt" => Step::Doubt(first.parse().ok()?),
        "Flush" => Step::Flush,
        "Fault" => Step::Fault(match first {
            "None" => Fault::None,
            "Down" => Fault::Down,
            "Deaf" => Fault::Deaf,
            "Hangs" => Fault::Hangs,
            "Slow" => Fault::Slow,
            "Panics" => Fault::Panics,
            "Short" => Fault::Short,
            "ReadOnly" => Fault::ReadOnly,
            "Fenced" => Fault::Fenced,
            "Conflict" => Fault::Conflict,
            _ => return None,
        }),
        _ => return None,
    };
    Some((slot.parse().ok()?, step))
}

#[test]
fn g15_g16_g17_what_has_failed_once_does_not() {
    let (lines, runs) = match std::env::var("REPLAY") {
        Ok(line) => (line, 100),
        Err(_) => (include_str!("failed.txt").to_owned(), 5),
    };
    for line in lines.lines() {
        let (steps, max_sessions) = parse(line).unwrap_or_else(|| panic!("cannot read {line}"));
        // As proptest prints it: nothing was skipped.
        assert_eq!(format!("{max_sessions} {steps:?}"), line);
        for _ in 0..runs {
            run_paused(steps.clone(), max_sessions);
        }
    }
}
