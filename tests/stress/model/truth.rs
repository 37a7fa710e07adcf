//! What ought to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tower_session_end::EndReason;

use super::steps::{DOUBT, IDLE, IDS, SWEEP, Settings};

type Id = u8;

/// Generations are numbered in the order of their starts.
pub(crate) type Number = u64;

/// Milliseconds since the case began.
pub(crate) type Millis = u64;

/// No step but a wait takes longer.
const LONGEST_STEP: Millis = 10_000;

/// The accuracy of the timers and of the handle's clock.
const ACCURACY: Millis = 20;

/// An active session.
#[derive(Clone, Debug)]
struct Active {
    number: Number,
    started: Millis,
    seen: Millis,
    doubted: Option<Millis>,
    parent: Option<Id>,
    /// Older than the lifetime, and at work: it ends with its last work.
    is_overdue: bool,
}

/// An end that is owed.
#[derive(Clone, Debug)]
pub(crate) struct Owed {
    pub(crate) id: Id,
    /// One, unless several causes come due within one sweep.
    pub(crate) reasons: BTreeSet<EndReason>,
    /// The generation whose end comes before, if the reason is `parent`.
    pub(crate) parent: Option<Number>,
}

/// A cause that ends a session between two moments.
#[derive(Clone, Copy, Debug)]
struct Due {
    from: Millis,
    until: Millis,
    reason: EndReason,
}

impl Due {
    fn new(since: Millis, timeout: Duration, slack: Duration, reason: EndReason) -> Self {
        let from = since + millis(timeout) - ACCURACY;
        Self { from, until: from + millis(slack) + 2 * ACCURACY, reason }
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    settings: Settings,
    pub(crate) now: Millis,
    pub(crate) starts: u64,
    /// Claims so far: the moment at which a request begins.
    pub(crate) claims: u64,
    active: BTreeMap<Id, Active>,
    pub(crate) owed: BTreeMap<Number, Owed>,
    pub(crate) stopping: Option<EndReason>,
    /// The number of the last claim of each id.
    claimed: BTreeMap<Id, u64>,
    /// What each generation was compacted into.
    successors: BTreeMap<Number, Number>,
    /// The generation with which each work began.
    work: Vec<Number>,
    guards: Vec<Number>,
    /// Who was idle at the last start to which `max_sessions` applies.
    idle_at_start: Option<BTreeSet<Number>>,
    /// Who ended in this step, with its work and after its lifetime, and its parent.
    expired_with_work: Option<(Number, Option<Id>)>,
}

impl Model {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 0,
            starts: 0,
            claims: 0,
            active: BTreeMap::new(),
            owed: BTreeMap::new(),
            stopping: None,
            claimed: BTreeMap::new(),
            successors: BTreeMap::new(),
            work: Vec::new(),
            guards: Vec::new(),
            idle_at_start: None,
            expired_with_work: None,
        }
    }

    /// The active sessions and their parents.
    pub(crate) fn active(&self) -> Vec<(Id, Option<Id>)> {
        self.active.iter().map(|(id, session)| (*id, session.parent)).collect()
    }

    pub(crate) fn number(&self, id: Id) -> Option<Number> {
        Some(self.active.get(&id)?.number)
    }

    fn active_number(&mut self, number: Number) -> Option<(Id, &mut Active)> {
        let session = self.active.iter_mut().find(|(_, session)| session.number == number)?;
        Some((*session.0, session.1))
    }

    /// What has become of a generation by compactions.
    fn successor(&self, mut number: Number) -> Number {
        while let Some(successor) = self.successors.get(&number) {
            number = *successor;
        }
        number
    }

    fn has_work(&self, number: Number) -> bool {
        self.work.iter().any(|began| self.successor(*began) == number)
    }

    fn is_busy(&self, number: Number) -> bool {
        self.guards.contains(&number) || self.has_work(number)
    }

    fn start(&mut self, id: Id, parent: Option<Id>) -> Number {
        self.starts += 1;
        let (number, now) = (self.starts, self.now);
        // No session is its own child.
        let parent = parent.filter(|parent| *parent != id);
        let session = Active { number, started: now, seen: now, doubted: None, parent, is_overdue: false };
        assert!(self.active.insert(id, session).is_none());
        number
    }

    /// The active generation shows a sign of life.
    fn sign_of_life(&mut self, id: Id) -> Option<Number> {
        let now = self.now;
        let session = self.active.get_mut(&id)?;
        (session.seen, session.doubted) = (now, None);
        Some(session.number)
    }

    /// The word of the host: it always starts what is not active.
    pub(crate) fn note(&mut self, id: Id, parent: Option<Id>) -> Number {
        if let Some(number) = self.sign_of_life(id) {
            return number;
        }
        let number = self.start(id, parent);
        let others = self.active.values().map(|session| session.number).filter(|other| *other != number);
        self.idle_at_start = Some(others.filter(|other| !self.is_busy(*other)).collect());
        if let Some(reason) = self.stopping {
            self.end(id, reason);
        }
        number
    }

    /// The id in the head of a response to a request that began after so many claims.
    fn head(&mut self, id: Id, began: u64) {
        if self.active.contains_key(&id) || !self.was_claimed_since(id, began) {
            self.note(id, None);
        }
    }

    fn was_claimed_since(&self, id: Id, began: u64) -> bool {
        self.claimed.get(&id).is_some_and(|claim| *claim > began)
    }

    fn claim(&mut self, id: Id) -> Option<Active> {
        let session = self.active.remove(&id)?;
        self.claims += 1;
        self.claimed.insert(id, self.claims);
        Some(session)
    }

    fn owe(&mut self, id: Id, reasons: BTreeSet<EndReason>, parent: Option<Number>) -> Option<Number> {
        let number = self.claim(id)?.number;
        assert!(self.owed.insert(number, Owed { id, reasons, parent }).is_none());
        Some(number)
    }

    /// Ends a session and its children. A shutdown ends the children by itself.
    pub(crate) fn end(&mut self, id: Id, reason: EndReason) -> bool {
        let number = self.owe(id, BTreeSet::from([reason]), None);
        if let Some(number) = number
            && self.stopping != Some(reason)
        {
            self.end_children(id, number);
        }
        number.is_some()
    }

    fn end_children(&mut self, parent: Id, number: Number) {
        for child in self.children(parent) {
            if let Some(child_number) = self.owe(child, BTreeSet::from([EndReason::Parent]), Some(number)) {
                self.end_children(child, child_number);
            }
        }
    }

    fn children(&self, parent: Id) -> Vec<Id> {
        self.active.iter().filter(|(_, session)| session.parent == Some(parent)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn forget(&mut self, id: Id) -> bool {
        self.claim(id).is_some()
    }

    pub(crate) fn forget_all(&mut self) -> usize {
        (0..IDS).filter(|id| self.forget(*id)).count()
    }

    pub(crate) fn guard(&mut self, id: Id) -> Number {
        let number = self.note(id, None);
        self.guards.push(number);
        number
    }

    pub(crate) fn drop_guard(&mut self, number: Number) {
        remove_one(&mut self.guards, number);
        let reason = self.stopping.unwrap_or(EndReason::Unknown);
        // In a shutdown the end of its work ends it.
        let is_spared = self.stopping.is_some() && self.has_work(number);
        if let Some((id, _)) = self.active_number(number)
            && !is_spared
        {
            self.end(id, reason);
        }
    }

    /// Work of this generation, or of what it has become.
    pub(crate) fn begin_work(&mut self, number: Number) -> Option<Number> {
        let number = self.successor(number);
        self.active_number(number)?.1.doubted = None;
        self.work.push(number);
        Some(number)
    }

    pub(crate) fn end_work(&mut self, began: Number) {
        remove_one(&mut self.work, began);
        let (number, now) = (self.successor(began), self.now);
        let has_work = self.has_work(number);
        if let Some((id, session)) = self.active_number(number) {
            session.seen = now;
            let (is_overdue, parent) = (session.is_overdue, session.parent);
            if !has_work && let Some(reason) = self.stopping.or(is_overdue.then_some(EndReason::Expired)) {
                self.expired_with_work = Some((number, parent)).filter(|_| reason == EndReason::Expired);
                self.end(id, reason);
            }
        }
    }

    /// A request is work, and no success yet.
    pub(crate) fn request(&mut self, id: Id) -> Option<Number> {
        let now = self.now;
        let session = self.active.get_mut(&id)?;
        session.seen = now;
        self.work.push(session.number);
        Some(session.number)
    }

    /// The host's success: the session of the request exists.
    pub(crate) fn trust(&mut self, number: Number) {
        if let Some((_, session)) = self.active_number(number) {
            session.doubted = None;
        }
    }

    pub(crate) fn doubt(&mut self, id: Id, only: Option<Number>) {
        let now = self.now;
        if let Some(session) = self.active.get_mut(&id)
            && only.is_none_or(|number| number == session.number)
        {
            session.doubted.get_or_insert(now);
        }
    }

    /// The end that a response declares. With `only`, no other generation of the id ends.
    pub(crate) fn end_by_response(&mut self, id: Id, only: Option<Number>) {
        if only.is_none() || self.number(id) == only {
            self.end(id, EndReason::Reset);
        }
    }

    /// The id in a head; `request` is the id of the request, and its generation.
    pub(crate) fn id_in_head(&mut self, id: Id, request: (Option<Id>, Option<Number>), began: u64) {
        let (carried, number) = request;
        // The id that the request carried is news only if it was unknown then, and never while closing.
        if carried != Some(id) || (number.is_none() && self.stopping.is_none()) {
            self.head(id, began);
        }
    }

    /// With `only`, no other generation of `old` ends. With `began`, the word is that of a head.
    pub(crate) fn compact(
        &mut self,
        (old, only): (Id, Option<Number>),
        (new, parent): (Id, Option<Id>),
        began: Option<u64>,
    ) -> bool {
        let compacted = self.active.get(&old).filter(|session| only.is_none_or(|only| only == session.number)).cloned();
        let Some(Active { number, parent: old_parent, .. }) = compacted else {
            match began {
                Some(began) => self.head(new, began),
                None => drop(self.note(new, parent)),
            }
            return false;
        };
        if old == new {
            // The exchange belongs to the session from here on, if to none before.
            if began.is_some() && only.is_none() {
                self.active.entry(old).and_modify(|session| session.seen = self.now);
            }
            return true;
        }
        let is_late = began.is_some_and(|began| self.was_claimed_since(new, began));
        let known = self.sign_of_life(new);
        let started = (known.is_none() && !is_late).then(|| self.start(new, parent.or(old_parent)));
        self.owe(old, BTreeSet::from([EndReason::Compaction]), None);
        if let Some(successor) = known.or(started) {
            self.successors.insert(number, successor);
            for child in self.children(old) {
                let session = self.active.get_mut(&child).unwrap();
                session.parent = (child != new).then_some(new);
            }
            // In a shutdown a session that starts ends at once.
            if let Some(reason) = self.stopping.filter(|_| started.is_some()) {
                self.end(new, reason);
            }
        }
        true
    }

    /// The beginning of a drain, and with `settles` also the end of its settle time. Returns how many sessions were at
    /// work then.
    pub(crate) fn drain(&mut self, reason: EndReason, settles: bool) -> usize {
        let reason = *self.stopping.get_or_insert(reason);
        let mut at_work = 0;
        for id in 0..IDS {
            let has_work = self.number(id).is_some_and(|number| self.has_work(number));
            if settles || !has_work {
                at_work += usize::from(has_work);
                self.end(id, reason);
            }
        }
        at_work
    }

    /// Takes back the ends that `max_sessions` chose itself: `gone` are no longer active.
    pub(crate) fn evict(&mut self, gone: &BTreeSet<Id>) {
        let expired_with_work = self.expired_with_work.take();
        let Some(idle) = self.idle_at_start.take() else { return };
        let is_idle = |session: &Active| idle.contains(&session.number);
        if gone.is_empty() {
            let is_over = self.active.len() > self.settings.max_sessions;
            assert!(!is_over || !self.active.values().any(is_idle), "nobody was evicted");
            return;
        }
        // It is nobody who is busy, and not the newcomer; and its children go with it.
        let is_evicted = |id: &Id| self.active.get(id).is_some_and(is_idle) && self.family(*id) == *gone;
        let evicted: Vec<_> = gone.iter().copied().filter(is_evicted).collect();
        match evicted[..] {
            [] => panic!("{gone:?} were evicted"),
            [id] => {
                let parent = self.number(id);
                self.end(id, EndReason::Evicted);
                // The head comes before the end of the work.
                if let Some((child, _)) = expired_with_work.filter(|(_, of)| *of == Some(id)) {
                    let owed = self.owed.get_mut(&child).unwrap();
                    owed.parent = parent;
                    owed.reasons.insert(EndReason::Parent);
                }
            }
            // In a circle of children, each may have been the first.
            _ => gone.iter().for_each(|id| {
                self.owe(*id, BTreeSet::from([EndReason::Evicted, EndReason::Parent]), None);
            }),
        }
    }

    /// The session, its children, and theirs.
    fn family(&self, id: Id) -> BTreeSet<Id> {
        let mut family = BTreeSet::from([id]);
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            next.extend(self.children(id).into_iter().filter(|child| family.insert(*child)));
        }
        family
    }

    fn due(&self, session: &Active) -> Vec<Due> {
        let &Active { number, started, seen, doubted, is_overdue, .. } = session;
        // A sweep later, and an activity may count for a sweep more.
        let idle = (!self.is_busy(number)).then(|| Due::new(seen, IDLE, 2 * SWEEP, EndReason::Idle));
        let lifetime = self.settings.lifetime.filter(|_| !is_overdue);
        let expired = lifetime.map(|lifetime| Due::new(started, lifetime, SWEEP, EndReason::Expired));
        let unknown = doubted.map(|doubted| Due::new(doubted, DOUBT, Duration::ZERO, EndReason::Unknown));
        idle.into_iter().chain(expired).chain(unknown).collect()
    }

    /// The first moment from `until` on at which nothing comes due, and in no step after it.
    pub(crate) fn quiet_from(&self, mut until: Millis) -> Millis {
        let all: Vec<_> = self.active.values().flat_map(|session| self.due(session)).collect();
        let later = |until| {
            let straddles = |due: &&Due| due.from <= until + LONGEST_STEP && until < due.until;
            all.iter().filter(straddles).map(|due| due.until).max()
        };
        while let Some(end) = later(until) {
            until = end;
        }
        until
    }

    /// Time passes, up to a moment that [`quiet_from`](Self::quiet_from) has found.
    pub(crate) fn pass(&mut self, until: Millis) {
        self.now = until;
        let mut causes = BTreeMap::<Id, Vec<Due>>::new();
        for id in 0..IDS {
            let Some(session) = self.active.get(&id) else { continue };
            let (is_busy, has_work) = (self.is_busy(session.number), self.has_work(session.number));
            for due in self.due(session).into_iter().filter(|due| due.until <= until) {
                let session = self.active.get_mut(&id).unwrap();
                match due.reason {
                    EndReason::Unknown if is_busy => session.doubted = None,
                    EndReason::Expired if has_work => session.is_overdue = true,
                    _ => causes.entry(id).or_default().push(due),
                }
            }
        }
        // The first and the last moment at which each may end, by its own causes or with its parent.
        let span = |due: &Vec<Due>| {
            let (from, until) = (due.iter().map(|due| due.from).min(), due.iter().map(|due| due.until).min());
            (from.unwrap(), until.unwrap())
        };
        let mut spans: BTreeMap<Id, (Millis, Millis)> = causes.iter().map(|(id, due)| (*id, span(due))).collect();
        for _ in 0..IDS {
            for (id, session) in &self.active {
                if let Some((from, until)) = session.parent.and_then(|parent| spans.get(&parent)).copied() {
                    let own = spans.entry(*id).or_insert((from, until));
                    *own = (own.0.min(from), own.1.min(until));
                }
            }
        }
        let mut ends = Vec::new();
        for (id, (_, until)) in &spans {
            let own = causes.get(id).into_iter().flatten().filter(|due| due.from <= *until).map(|due| due.reason);
            let parent =
                self.active[id].parent.filter(|parent| spans.get(parent).is_some_and(|(from, _)| from <= until));
            let reasons = own.chain(parent.map(|_| EndReason::Parent)).collect();
            ends.push((*id, reasons, parent.and_then(|parent| self.number(parent))));
        }
        for (id, reasons, parent) in ends {
            self.owe(id, reasons, parent);
        }
    }
}

fn remove_one(all: &mut Vec<Number>, number: Number) {
    let index = all.iter().position(|other| *other == number).unwrap();
    all.swap_remove(index);
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap()
}
