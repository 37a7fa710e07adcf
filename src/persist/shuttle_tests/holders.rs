//! Sessions of several processes, and what is left of one that has died.

use super::*;

#[test]
fn g02_a_released_generation_between_two_others_keeps_the_order() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Update(Origin::Carried));
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
            model.go_down();
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_session_that_others_still_hold_has_no_end_here() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).shared.insert(SessionId::try_from("a").unwrap());
        model.spawn(|model| {
            let a = model.note_as("a", NoteSource::Handle);
            a.iter().for_each(|a| {
                model.tracker.claim(a, EndReason::Idle, Scope::Here);
            });
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.held_elsewhere, model.count(Hook::End)), (counts.starts, 0));
    });
}

#[test]
fn g16_a_session_that_another_process_started_has_no_start_here_and_one_end() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).joined.insert(SessionId::try_from("a").unwrap());
        model.carry("a");
        model.spawn(|model| {
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((model.count(Hook::Start), model.count(Hook::End)), (0, 1));
    });
}

#[test]
fn g16_an_orphaned_end_of_an_active_session_is_delivered_once() {
    explore(|| {
        let model = Model::new();
        let generation = model.hold("a");
        let record = model.tracker.record_of(&generation);
        model.spawn(move |model| {
            let mut records = lock(&model.records);
            let (_, status) = records.status.get_mut(&record.generation).unwrap();
            // A holder that died had ended it for all.
            if *status == Status::Held {
                *status = Status::Owned;
                let end = EndRecord::new(EndReason::Deleted, None, SystemTime::UNIX_EPOCH, 0);
                model.tracker.take_over(Orphan::new(record, end, 1), &Arc::default());
            }
        });
        model.spawn(|model| {
            model.end("a");
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended, model.count(Hook::End)), (1, 1, 1));
    });
}
