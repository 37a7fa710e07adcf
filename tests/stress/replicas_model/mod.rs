//! Random sequences of everything that can happen to sessions of two replicas on one registry, crashes, lost leases and
//! faults of the registry included.
//!
//! A few dozen cases here; the end of `LAWS.md` says how to run many.
//!
//! There is no prediction of each step, but a balance at the end: every generation that was ever on record, or that a start
//! hook was called for, has an end in one of the lives; a second one only where a fault excuses it; nothing is left in the
//! registry; every report adds up, and no stop takes longer than it may. `LAWS.md` says what each fault excuses.

mod balance;
mod emptied;
mod failed;
mod steps;
mod world;

use crate::support::store::Fault;
use proptest::prelude::*;
use steps::{IDS, REPLICAS, Step, conflicts, peace, trouble};
use world::World;

async fn run(steps: Vec<(usize, Step)>, max_sessions: usize) -> World {
    let mut world = World::new(max_sessions);
    for (slot, step) in &steps {
        world.step(*slot, step.clone()).await;
    }
    world.settle().await;
    world.check(&steps);
    world
}

fn run_paused(steps: Vec<(usize, Step)>, max_sessions: usize) -> World {
    let _alone = crate::ONE_AT_A_TIME.blocking_lock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(steps, max_sessions))
}

fn steps(step: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<(usize, Step)>> {
    proptest::collection::vec((0..REPLICAS, step), 1..50)
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    ProptestConfig {
        cases,
        failure_persistence: crate::failures("replicas_model"),
        max_shrink_iters: 10_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn g01_g16_in_peace_every_generation_of_two_replicas_gets_exactly_one_start_and_one_end(
        steps in steps(prop_oneof![16 => peace().boxed(), 1 => conflicts().boxed()]),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }

    #[test]
    fn g15_after_crashes_everything_that_a_client_saw_has_an_end(
        steps in steps(prop_oneof![8 => peace().boxed(), 1 => Just(Step::Crash).boxed()]),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }

    #[test]
    fn g15_g16_g17_whatever_goes_wrong_no_end_is_lost_and_one_too_many_is_explained(
        steps in steps(prop_oneof![4 => peace().boxed(), 1 => trouble().boxed()]),
        max_sessions in 2..=usize::from(IDS),
    ) {
        run_paused(steps, max_sessions);
    }
}

/// A holder that did not hear of the end records the session again when the store has forgotten everything.
#[test]
fn g15_an_end_that_the_store_forgets_before_a_holder_hears_of_it_may_come_again() {
    use Step::{Compact, Doubt, Durable, End, Flush, Note, Restart};
    let steps = vec![
        (1, Compact(0, 0)),
        (0, Note(0)),
        (0, Durable(0)),
        (0, Doubt(true)),
        (1, End(0)),
        (1, Restart),
        (0, Flush),
        (0, Restart),
    ];
    run_paused(steps, 2);
}

/// What a store has forgotten dies with the process that was about to end it.
#[test]
fn g15_an_end_that_dies_with_its_process_after_the_store_forgot_the_session_is_excused() {
    use Step::{Compact, Crash, End, Flush, HalfADrain, Note, Wait};
    let steps =
        vec![(0, Compact(0, 1)), (0, Wait(1)), (1, Note(1)), (0, HalfADrain(40)), (0, Flush), (1, End(1)), (1, Crash)];
    run_paused(steps, 3);
}

/// What has failed once, and not because the model was wrong.
#[test]
fn sequences_that_once_failed_do_not() {
    use Step::{
        Compact, Crash, Drive, Durable, End, Flush, Guard, HalfADrain, Head, Note, Recover, Restart, Silence, Wait,
    };
    let sequences = [
        // A drain that did not hear of the last end.
        vec![(0, HalfADrain(0)), (0, Note(0)), (0, Durable(1)), (1, Compact(0, 1)), (1, Note(0)), (0, Compact(0, 1))],
        // A start torn from the middle by a stop that said it was clean.
        vec![(0, Note(2)), (1, Durable(2)), (0, Recover), (1, Note(0))],
        // A later generation taken for a stranger's.
        vec![
            (0, Durable(2)),
            (0, Flush),
            (0, Compact(2, 0)),
            (0, Step::Fault(Fault::Down)),
            (0, Wait(15)),
            (0, Wait(235)),
            (0, Note(2)),
        ],
        // The end of a session before its start, in one process.
        vec![
            (1, Note(2)),
            (0, Crash),
            (0, Guard(2)),
            (0, End(2)),
            (0, Durable(2)),
            (1, Durable(1)),
            (0, Compact(0, 0)),
            (1, Crash),
            (1, Head(2)),
            (1, Crash),
            (1, Crash),
            (0, Note(1)),
            (1, Durable(0)),
            (1, Note(0)),
        ],
        // Two ends in one process: a dead holder's, and its own.
        vec![
            (0, Note(0)),
            (1, Compact(0, 2)),
            (0, Note(2)),
            (1, End(2)),
            (0, Durable(0)),
            (1, Crash),
            (0, Drive(false)),
        ],
        // An end that came due while nobody knew of the lease, handed over to nobody.
        vec![
            (0, Durable(1)),
            (1, Note(0)),
            (0, Wait(1)),
            (0, Flush),
            (0, Silence),
            (1, Step::Fault(Fault::Hangs)),
            (1, Note(1)),
        ],
        vec![(0, Step::Fault(Fault::Panics)), (0, Restart)],
    ];
    for steps in sequences {
        // The hooks take other times each time.
        for _ in 0..5 {
            run_paused(steps.clone(), 2);
        }
    }
}
