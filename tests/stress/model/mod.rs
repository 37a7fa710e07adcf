//! Random sequences of everything that can happen to sessions of one handle, against a model that counts the ends owed.
//!
//! After each step the handle has the sessions that the model has, with the same parents. At the end each generation
//! has had the end that the model owes it, once, with its reason, and the hooks were in order.
//!
//! A few hundred cases here; for more, `PROPTEST_CASES=20000 cargo test --release --test stress stress::model::`.

mod steps;
mod truth;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use steps::{Answer, Settings, Step, settings, step};
use world::World;

fn run(steps: Vec<Step>, settings: Settings) {
    let _alone = crate::ONE_AT_A_TIME.blocking_lock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(settings);
        for step in steps {
            world.step(step).await;
        }
        world.finish().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: crate::failures("model"), max_shrink_iters: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn g01_g02_g12_g13_g20_g22_every_generation_gets_the_end_that_the_model_owes_it(
        steps in proptest::collection::vec(step(), 1..60),
        settings in settings(),
    ) {
        run(steps, settings);
    }
}

/// What has failed once, and not because the model was wrong.
#[test]
fn sequences_that_once_failed_do_not() {
    use Answer::{Doubt, Open};
    use Step::{Compact, Doze, DropWork, End, Exchange, Forget, Note, Work};
    let sequences = [
        // The idle time did not count from the end of the work.
        vec![Note(3, None), Work(3), Doze(41), DropWork(0), Doze(41), Doze(19)],
        // The same after a compaction.
        vec![Note(3, None), Work(3), Compact(3, 0, None), Doze(41), DropWork(0), Doze(41), Doze(19)],
        // A successor became its own child.
        vec![Note(1, None), Compact(1, 2, Some(1))],
        // A compaction into a doubted session did not take the doubt back.
        vec![Exchange(None, Open(3)), Exchange(None, Doubt(3)), Compact(0, 3, None), Doze(41)],
        // A parent that had ended before the compaction ended the successor of a child of another.
        vec![Note(3, Some(0)), Note(1, None), End(1), Compact(3, 0, Some(1))],
        // So did one that had ended before it became the parent.
        vec![
            Note(1, None),
            Note(3, Some(1)),
            Note(2, None),
            End(2),
            Compact(1, 2, None),
            Forget(2),
            Compact(3, 0, None),
        ],
    ];
    for steps in sequences {
        run(steps, Settings { max_sessions: 4, settle: Duration::ZERO, lifetime: None });
    }
}
