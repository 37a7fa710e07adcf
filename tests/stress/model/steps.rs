//! What can happen, and the times of the handle.

use std::time::Duration;

use proptest::prelude::*;

pub(crate) const IDS: u8 = 4;

/// Longer than all the short waits of most cases.
pub(crate) const IDLE: Duration = Duration::from_secs(100);
pub(crate) const DOUBT: Duration = Duration::from_secs(40);
/// The handle's look at each session is at most so late.
pub(crate) const SWEEP: Duration = Duration::from_millis(3125);

/// What the handle is built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) max_sessions: usize,
    pub(crate) settle: Duration,
    pub(crate) lifetime: Option<Duration>,
}

pub(crate) fn settings() -> impl Strategy<Value = Settings> {
    let settle = prop_oneof![Just(Duration::ZERO), Just(Duration::from_millis(100))];
    let lifetime = proptest::option::of(Just(Duration::from_secs(130)));
    (2..=usize::from(IDS), settle, lifetime).prop_map(|(max_sessions, settle, lifetime)| Settings {
        max_sessions,
        settle,
        lifetime,
    })
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// With a parent, or none.
    Note(u8, Option<u8>),
    End(u8),
    Forget(u8),
    ForgetAll,
    /// Into a successor that names a parent, or none.
    Compact(u8, u8, Option<u8>),
    Guard(u8),
    DropGuard(usize),
    /// Work of the active session of an id.
    Work(u8),
    /// Work of a guard's session.
    WorkOfGuard(usize),
    DropWork(usize),
    /// A request arrives that carries an id, or none.
    Request(Option<u8>),
    /// A request and its response.
    Exchange(Option<u8>, Answer),
    /// One of the requests gets its response.
    Respond(usize, Answer),
    /// Time for some hooks.
    Wait(u8),
    /// So many seconds: longer than a sweep, and shorter than the idle time.
    Doze(u8),
    /// Longer than the idle time.
    Silence,
    Drain,
    /// A drain that is dropped after so many milliseconds.
    HalfADrain(u8),
}

/// What a response says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Nothing,
    /// 404, and nothing else.
    Refuse,
    /// 404, with the handler's word that this session is doubted.
    Doubt(u8),
    Echo,
    /// The id in the head.
    Open(u8),
    /// The handler's word that this session has started.
    Started(u8),
    End,
    CompactInto(u8),
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let id = || 0..IDS;
    let parent = |weight| proptest::option::weighted(weight, id());
    let answer = prop_oneof![
        2 => Just(Answer::Nothing),
        1 => Just(Answer::Refuse),
        3 => id().prop_map(Answer::Doubt),
        2 => Just(Answer::Echo),
        2 => id().prop_map(Answer::Open),
        1 => id().prop_map(Answer::Started),
        2 => Just(Answer::End),
        2 => id().prop_map(Answer::CompactInto),
    ];
    let carried = || proptest::option::weighted(0.8, id());
    prop_oneof![
        12 => (id(), parent(0.5)).prop_map(|(id, parent)| Step::Note(id, parent)),
        5 => id().prop_map(Step::End),
        2 => id().prop_map(Step::Forget),
        1 => Just(Step::ForgetAll),
        8 => (id(), id(), parent(0.2)).prop_map(|(old, new, parent)| Step::Compact(old, new, parent)),
        4 => id().prop_map(Step::Guard),
        4 => any::<usize>().prop_map(Step::DropGuard),
        6 => id().prop_map(Step::Work),
        2 => any::<usize>().prop_map(Step::WorkOfGuard),
        6 => any::<usize>().prop_map(Step::DropWork),
        8 => carried().prop_map(Step::Request),
        14 => (carried(), answer.clone()).prop_map(|(id, answer)| Step::Exchange(id, answer)),
        10 => (any::<usize>(), answer).prop_map(|(which, answer)| Step::Respond(which, answer)),
        6 => any::<u8>().prop_map(Step::Wait),
        10 => (1..60_u8).prop_map(Step::Doze),
        2 => Just(Step::Silence),
        1 => Just(Step::Drain),
        1 => any::<u8>().prop_map(Step::HalfADrain),
    ]
}

pub(crate) fn name(id: u8) -> String {
    format!("s{id}")
}
