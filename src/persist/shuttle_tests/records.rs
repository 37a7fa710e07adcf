//! Records that are sent, cancelled, lost, and written late.

use super::*;

/// `claim` races with the writer that sends the record of a generation that has started without the registry.
fn claim_beside_sending(claim: fn(&Model)) -> (Arc<Model>, Counts) {
    let model = Model::new();
    model.start_in_outage("a");
    model.spawn(Model::come_up);
    model.spawn(|model| {
        model.write();
    });
    model.spawn(move |model| claim(model));
    let counts = model.check();
    assert_eq!((model.count(Hook::Start), counts.starts), (1, 1));
    (model, counts)
}

#[test]
fn g15_an_end_beside_the_writer_that_sends_the_record_is_delivered_once() {
    explore(|| {
        let (model, counts) = claim_beside_sending(|model| {
            model.end("a");
        });
        assert!(model.count(Hook::End) as u64 == counts.ended && counts.ended + counts.handed_over == 1, "{counts:?}");
    });
}

#[test]
fn g15_a_forget_beside_the_writer_that_sends_the_record_leaves_no_record() {
    explore(|| {
        let (model, counts) = claim_beside_sending(|model| {
            model.tracker.forget(b"a");
        });
        assert_eq!(model.count(Hook::End) as u64, counts.ended, "{counts:?}");
        if counts.forgotten == 1 {
            assert!(lock(&model.records).status.values().all(|(_, status)| *status == Status::Removed));
        }
    });
}

#[test]
fn g15_a_lost_answer_to_the_hold_of_a_started_session_makes_no_second_end() {
    explore(|| {
        let model = Model::new();
        model.start_in_outage("a");
        lock(&model.records).lost_answers = 1;
        model.spawn(Model::come_up);
        model.spawn(|model| {
            model.write();
            model.end("a");
        });
        model.spawn(Model::come_up);
        model.check();
        assert_eq!(model.count(Hook::Start), 1);
    });
}

#[test]
fn g15_under_overload_each_session_has_one_start_and_one_end() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b", "c"] {
            model.make(id);
        }
        model.spawn(|model| {
            for id in ["b", "a", "d", "c"] {
                model.end(id);
            }
        });
        model.spawn(|model| {
            if let Some(generation) = model.note_as("d", NoteSource::Update(Origin::Carried)) {
                model.tracker.claim(&generation, EndReason::Idle, Scope::Here);
            }
        });
        model.spawn(|model| {
            model.write();
            model.note_as("a", NoteSource::Handle);
        });
        let counts = model.check();
        assert_eq!((model.count(Hook::Start) as u64, model.count(Hook::End) as u64), (counts.starts, counts.starts));
        assert_eq!(counts.ended, counts.starts);
    });
}

#[test]
fn g16_a_session_that_has_started_becomes_no_other() {
    explore(|| {
        let model = Model::new();
        lock(&model.records).joined.insert(SessionId::try_from("a").unwrap());
        model.start_in_outage("a");
        model.spawn(Model::come_up);
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g15_lost_records_beside_claims_change_no_count() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.note("b");
        model.spawn(Model::lose_records);
        model.spawn(|model| {
            model.end("a");
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.starts, counts.ended, model.count(Hook::End)), (2, 2, 2), "{counts:?}");
    });
}

#[test]
fn g15_a_redelivery_changes_no_count_of_the_tracker() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.failures.store(1, Ordering::SeqCst);
        model.spawn(|model| {
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
        model.spawn(|model| {
            model.write();
        });
        let counts = model.check();
        assert_eq!((counts.failed, counts.ended + 1), (1, counts.starts), "{counts:?}");
        assert!(lock(&model.records).status.values().all(|(_, status)| *status == Status::Removed));
    });
}
