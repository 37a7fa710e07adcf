//! Leases that are lost.

use super::*;

#[test]
fn g16_a_lost_lease_beside_a_running_start_renews_the_session_after_it() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(Model::lose_lease);
        model.spawn(Model::lose_lease);
        let counts = model.check();
        assert!(counts.starts >= model.count(Hook::Start) as u64, "{counts:?}");
    });
}

#[test]
fn g16_a_session_goes_on_with_a_start_and_a_record_after_a_lost_lease_or_a_notice() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b", "c"] {
            model.hold(id);
        }
        // Noted after the end elsewhere, as far as its age says.
        let generation = model.note("b");
        let listener = generation.listen();
        model.spawn(|model| {
            model.end_elsewhere("b");
            model.end_elsewhere("c");
            model.lose_lease();
        });
        model.spawn(|model| {
            model.run_jobs();
            model.write();
        });
        while model.running.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        while model.write() || model.run_jobs() {}
        assert!(model.tracker.find(b"c").is_none(), "others have ended it");
        assert!(listener.is_cancelled(), "the streams of the old generation go on");
        for id in ["a", "b"] {
            let generation = model.tracker.find(id.as_bytes()).unwrap();
            let generation_id = model.tracker.generation_id(&generation);
            assert_eq!(generation.record_state(), RecordState::Held);
            assert_eq!(lock(&model.records).status[&generation_id].1, Status::Held);
            let is_start = |(_, of, hook): &(_, _, Hook)| *of == generation_id && *hook == Hook::StartDone;
            assert!(lock(&model.log).iter().any(is_start), "{id}: no start of the new generation");
        }
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_keeps_a_session_whose_record_may_not_exist() {
    explore(|| {
        let model = Model::new();
        model.start_in_outage("a");
        lock(&model.records).lost_calls = 1;
        model.spawn(|model| {
            model.come_up();
            model.write();
            model.come_up();
            model.lose_lease();
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_beside_claims_and_notes_leaves_one_end_of_each_start() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.hold("b");
        model.note("d");
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Handle);
            model.tracker.forget(b"d");
        });
        model.spawn(Model::lose_lease);
        model.spawn(|model| {
            model.write();
            model.compact("b", "c");
        });
        model.check();
    });
}

#[test]
fn g16_a_lost_lease_in_an_outage_that_ends_in_a_drain_leaves_one_end_of_each_start() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.start_in_outage("b");
        model.spawn(|model| {
            model.come_up();
            model.lose_lease();
        });
        model.spawn(|model| {
            model.end("a");
            model.write();
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}
