//! A registry that is down.

use super::*;

#[test]
fn g15_an_end_that_is_withheld_beside_the_drain_is_resolved() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| {
            model.go_down();
            model.end("a");
            model.write();
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g15_an_end_that_holds_its_record_first_beside_the_drain_is_resolved() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.hold("b");
        model.spawn(|model| {
            // Before the outage: a record that is lost after its end was handed over is lost with it.
            model.lose_records();
            model.write();
            model.go_down();
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
            model.write();
            model.note_as("a", NoteSource::Handle);
            model.come_up();
        });
        model.check();
    });
}

#[test]
fn g17_with_no_replicas_everything_starts_and_ends_here_in_an_outage() {
    explore(|| {
        let model = Model::with(false);
        model.hold("a");
        model.spawn(|model| {
            model.go_down();
            model.end("a");
            model.note_as("a", NoteSource::Update(Origin::Carried));
        });
        model.spawn(|model| {
            model.write();
            model.end("a");
        });
        model.spawn(Model::come_up);
        let counts = model.check();
        assert_eq!((model.count(Hook::Start) as u64, model.count(Hook::End) as u64), (counts.starts, counts.ended));
        assert_eq!(counts.starts, counts.ended, "{counts:?}");
    });
}

#[test]
fn g17_what_comes_after_a_postponed_end_of_its_id_waits_behind_it() {
    explore(|| {
        let model = Model::new();
        model.persister.on_not_found();
        model.spawn(|model| {
            model.carry("a");
            model.end("a");
            model.write();
            model.carry("a");
            model.write();
            model.end("a");
        });
        model.spawn(|model| {
            model.write();
            model.write_later();
            model.write();
            model.carry("a");
        });
        model.check();
    });
}

#[test]
fn g15_what_is_made_anew_comes_after_a_postponed_end_of_its_id() {
    explore(|| {
        let model = Model::new();
        model.persister.on_not_found();
        model.spawn(|model| {
            model.carry("a");
            model.end("a");
            model.write();
            model.make("a");
            model.write();
            model.end("a");
        });
        model.spawn(|model| {
            model.write();
            model.write_later();
            model.write();
            model.note("a");
        });
        model.check();
    });
}
