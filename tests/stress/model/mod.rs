//! Random sequences of everything that can happen to sessions of one handle, against a model that counts the ends owed.
//!
//! After each step the handle has the sessions that the model has, with the same parents. At the end each generation
//! has had the end that the model owes it, once, with its reason, and the hooks were in order.
//!
//! A few hundred cases here; for more, `PROPTEST_CASES=20000 cargo test --release --test stress stress::model::`.

mod steps;
mod truth;
mod world;

use proptest::prelude::*;
use steps::{Settings, Step, settings, step};
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
