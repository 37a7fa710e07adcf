//! What can happen, in peace and in trouble.

use std::time::Duration;

use proptest::prelude::*;

use crate::support::store::Fault;

pub(crate) const IDS: u8 = 3;
pub(crate) const REPLICAS: usize = 2;
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
pub(crate) const CONNECTIONS: Duration = Duration::from_secs(1);
/// Longer than all the waits of most cases.
pub(crate) const IDLE: Duration = Duration::from_secs(100);

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Note(u8),
    /// With a wait for the record.
    Durable(u8),
    /// A response head that carries the id.
    Head(u8),
    /// A request that carries the id, and the head of its response.
    Request(u8),
    End(u8),
    Forget(u8),
    Compact(u8, u8),
    Guard(u8),
    DropGuard(usize),
    Wait(u16),
    Silence,
    Recover,
    /// A driver from here on, or none.
    Drive(bool),
    /// Drained, finished, and started again.
    Restart,
    /// A drain that is dropped after a while.
    HalfADrain(u8),
    /// Gone from one moment to the next, and started again.
    Crash,
    /// Its lease is over, and it does not know.
    Stall,
    Fault(Fault),
    /// It cannot say whether its lease runs, and then it can.
    Doubt(bool),
    /// The store forgets everything.
    Flush,
}

impl Step {
    pub(crate) const fn is_trouble(&self) -> bool {
        match self {
            // A conflict excuses nothing.
            Self::Fault(fault) => !matches!(fault, Fault::None | Fault::Conflict),
            Self::Crash | Self::Stall | Self::Doubt(_) | Self::Flush => true,
            _ => false,
        }
    }

    /// Trouble in which everything is on record: it excuses no generation that has a start and no end.
    pub(crate) const fn loses_nothing(&self) -> bool {
        !self.is_trouble() || matches!(self, Self::Crash | Self::Stall | Self::Doubt(_))
    }
}

pub(crate) fn peace() -> impl Strategy<Value = Step> {
    let id = || 0..IDS;
    prop_oneof![
        6 => id().prop_map(Step::Note),
        3 => id().prop_map(Step::Durable),
        3 => id().prop_map(Step::Head),
        2 => id().prop_map(Step::Request),
        4 => id().prop_map(Step::End),
        1 => id().prop_map(Step::Forget),
        3 => (id(), id()).prop_map(|(old, new)| Step::Compact(old, new)),
        2 => id().prop_map(Step::Guard),
        2 => any::<usize>().prop_map(Step::DropGuard),
        6 => (0..300_u16).prop_map(Step::Wait),
        2 => (0..8000_u16).prop_map(Step::Wait),
        1 => Just(Step::Silence),
        1 => Just(Step::Recover),
        2 => any::<bool>().prop_map(Step::Drive),
        2 => Just(Step::Restart),
        1 => any::<u8>().prop_map(Step::HalfADrain),
    ]
}

/// Calls that meet a concurrent one, and then none.
pub(crate) fn conflicts() -> impl Strategy<Value = Step> {
    prop_oneof![3 => Just(Fault::Conflict), 1 => Just(Fault::None)].prop_map(Step::Fault)
}

pub(crate) fn trouble() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        4 => Just(Fault::None),
        2 => Just(Fault::Down),
        2 => Just(Fault::Deaf),
        1 => Just(Fault::Hangs),
        1 => Just(Fault::Slow),
        1 => Just(Fault::Short),
        1 => Just(Fault::Panics),
        1 => Just(Fault::ReadOnly),
        1 => Just(Fault::Fenced),
        1 => Just(Fault::Conflict),
    ];
    prop_oneof![
        3 => Just(Step::Crash),
        2 => Just(Step::Stall),
        6 => fault.prop_map(Step::Fault),
        2 => any::<bool>().prop_map(Step::Doubt),
        1 => Just(Step::Flush),
    ]
}

pub(crate) fn name(id: u8) -> String {
    format!("s{id}")
}
