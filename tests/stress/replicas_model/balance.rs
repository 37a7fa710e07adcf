//! The balance: who has had an end, how many, and whether that is as it should be.

use std::collections::{BTreeMap, BTreeSet};

use tower_session_end::GenerationId;

use super::{
    steps::{Step, name},
    world::World,
};

impl World {
    /// How many ends each generation has had.
    pub(crate) fn ends(&self) -> BTreeMap<GenerationId, usize> {
        let mut ends = BTreeMap::new();
        for told in self.log.lock().unwrap().iter().filter(|told| told.end.is_some()) {
            *ends.entry(told.event).or_default() += 1;
        }
        ends
    }

    pub(crate) fn check(&self, steps: &[(usize, Step)]) {
        let log = self.log.lock().unwrap();
        let history = self.store.history();
        let mut told = BTreeMap::<GenerationId, (Vec<usize>, Vec<usize>)>::new();
        for told_now in log.iter() {
            let (starts, ends) = told.entry(told_now.event).or_default();
            if told_now.end.is_some() { ends.push(told_now.life) } else { starts.push(told_now.life) }
        }
        // The start of what was forgotten is nobody's to wait for.
        let is_forgotten = |event: &GenerationId| {
            let ids: BTreeSet<_> = log.iter().filter(|told| told.event == *event).map(|told| &told.id).collect();
            self.forgotten.iter().any(|(_, id)| ids.contains(id))
        };
        let in_peace = steps.iter().all(|(_, step)| !step.is_trouble());
        let about = |event: &GenerationId| format!("{event}: {:?}\n{history:?}\n{log:#?}", told.get(event));
        for event in told.keys().chain(history.recorded.keys()) {
            let is_recorded = history.recorded.contains_key(event);
            let is_excused = history.forgotten.contains(event)
                || self.lost.contains(event)
                || (!is_recorded && is_forgotten(event))
                || (history.wiped.contains(event) && (!told.contains_key(event) || is_forgotten(event)));
            let (starts, ends) = told.get(event).cloned().unwrap_or_default();
            assert!(!ends.is_empty() || is_excused, "no end for {}", about(event));
            let is_split = self.split.contains(event) || history.unsettled.contains(event);
            let unexcused = ends.iter().filter(|life| !self.repeating.contains(life)).count();
            assert!(unexcused <= 1 || is_split, "{} ends for {}", ends.len(), about(event));
            for life in &ends {
                let of_life = ends.iter().filter(|other| *other == life).count();
                let may_repeat = self.fenced.contains(life) || is_split;
                assert!(of_life == 1 || may_repeat, "{of_life} ends in life {life} for {}", about(event));
            }
            assert!(starts.len() <= 1, "{} starts for {}", starts.len(), about(event));
            let may_be_silent = !in_peace || is_forgotten(event) || history.forgotten.contains(event);
            assert!(may_be_silent || starts.len() == 1, "no start for {}", about(event));
        }
        if steps.iter().all(|(_, step)| step.loses_nothing()) {
            assert!(self.lost.is_empty(), "{:?}", self.lost);
        }
        let only_crashes = steps.iter().all(|(_, step)| !step.is_trouble() || matches!(step, Step::Crash));
        let forgets = |id: &str| {
            let is_forgotten = |(_, step): &(usize, Step)| matches!(step, Step::Forget(other) if name(*other) == id);
            steps.iter().any(is_forgotten)
        };
        if only_crashes {
            for (id, from) in self.seen.iter().filter(|(id, _)| !forgets(id)) {
                let has_end = log[*from..].iter().any(|told| told.id == *id && told.end.is_some());
                assert!(has_end, "a client saw {id}, and it has no end: {log:#?}");
            }
        }
        // Who has missed answers may not know what it has claimed.
        let hasty = self.hasty.lock().unwrap();
        let hasty: Vec<_> = hasty.iter().filter(|(life, _)| !self.unheard.contains(life)).collect();
        assert!(hasty.is_empty(), "delivered while the lease was uncertain: {hasty:?}");
        // In one life, no end comes before its start.
        for (at, end) in log.iter().enumerate().filter(|(_, told)| told.end.is_some()) {
            let late = log[at..].iter().any(|told| (told.life, told.event, told.end) == (end.life, end.event, None));
            assert!(!late, "the start of {end:?} came after it");
        }
    }
}
