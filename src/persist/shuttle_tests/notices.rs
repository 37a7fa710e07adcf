//! Ends of other processes.

use super::*;

/// Another process ends `a` for all, beside `other`.
fn notice_beside(other: fn(&Model)) -> (Arc<Model>, Counts) {
    let model = Model::new();
    let generation = model.hold("a");
    let listener = generation.listen();
    model.spawn(|model| model.end_elsewhere("a"));
    model.spawn(move |model| other(model));
    let counts = model.check();
    assert!(listener.is_cancelled());
    (model, counts)
}

#[test]
fn g16_a_notice_beside_an_end_and_a_running_start_leaves_one_end() {
    explore(|| {
        notice_beside(|model| {
            model.end("a");
        });
    });
}

#[test]
fn g16_a_notice_beside_notes_starts_a_new_generation_in_order() {
    explore(|| {
        notice_beside(|model| {
            model.note_as("a", NoteSource::Handle);
            model.end("a");
            model.note_as("a", NoteSource::Handle);
        });
    });
}

#[test]
fn g16_a_notice_beside_a_compaction_ends_the_old_session_once() {
    explore(|| {
        let model = Model::new();
        model.hold("a");
        model.spawn(|model| model.end_elsewhere("a"));
        model.spawn(|model| model.compact("a", "b"));
        model.check();
    });
}

#[test]
fn g16_a_notice_beside_a_forget_calls_no_end_here_twice() {
    explore(|| {
        notice_beside(|model| {
            model.tracker.forget(b"a");
        });
    });
}

#[test]
fn g16_a_notice_beside_work_and_a_guard_releases_the_session() {
    explore(|| {
        notice_beside(|model| {
            let work = model.tracker.begin_work(b"a");
            if let Some(generation) = &work {
                generation.begin_activity(Activity::Guard);
                thread::yield_now();
                generation.end_activity(Activity::Guard, || false);
                model.tracker.claim(generation, EndReason::Unknown, Scope::Here);
                generation.end_activity(Activity::Work, || false);
            }
        });
    });
}

#[test]
fn g16_the_child_of_a_session_that_others_have_ended_ends_once() {
    explore(|| {
        let model = Model::new();
        model.hold("p");
        model.tracker.note(Session::try_from("c").unwrap().with_parent("p"), NoteSource::Handle, None);
        model.spawn(|model| model.end_elsewhere("p"));
        model.spawn(|model| {
            model.end("c");
        });
        model.spawn(|model| {
            model.write();
        });
        model.check();
    });
}

#[test]
fn g16_a_hold_that_is_answered_gone_calls_no_hook() {
    explore(|| {
        let model = Model::new();
        for id in ["a", "b"] {
            lock(&model.records).gone.insert(SessionId::try_from(id).unwrap());
        }
        model.note("a");
        model.carry("b");
        model.spawn(|model| {
            model.write();
        });
        model.spawn(|model| {
            model.end("a");
        });
        model.spawn(|model| {
            model.note_as("a", NoteSource::Handle);
        });
        let counts = model.check();
        assert!(counts.ended_elsewhere >= 2, "{counts:?}");
        assert_eq!(model.count(Hook::Start), model.count(Hook::End));
    });
}
