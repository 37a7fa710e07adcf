//! Postponed entries: an end that found no record to join.
//!
//! After an outage, another process may be about to record an id that came with a request. The end of such a session asks for
//! the record again later, and creates one if there is still none. What is queued for the id after it waits behind it: its
//! answer decides which record the id has.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{
    Persister,
    redelivery::{HOLD_AGAIN_AFTER, Later},
};
use crate::{
    hooks::Pool,
    session::SessionId,
    sync::lock,
    tracker::{Origin, OutboxEntry, Queued},
};

/// The most ids whose entries are postponed. Others are recorded at once.
const MAX_IDS: usize = 65_536;

/// Postponed entries, by id. The first one of each id is the end that found no record.
#[derive(Debug, Default)]
pub(super) struct Postponed {
    by_id: HashMap<SessionId, Vec<Queued>>,
}

impl Postponed {
    /// Takes the entries out of `group` that wait behind a postponed one. Returns the entries of ids that can wait no longer: the
    /// host has made them anew, and a response waits for the record.
    fn hold_back(&mut self, group: &mut Vec<Queued>) -> Vec<Vec<Queued>> {
        if self.by_id.is_empty() {
            return Vec::new();
        }
        let waits = |queued: &mut Queued| queued.entry.needs_record() && self.by_id.contains_key(queued.entry.id());
        let waiting: Vec<_> = group.extract_if(.., waits).collect();
        let mut made_anew = Vec::new();
        for queued in waiting {
            let id = queued.entry.id().clone();
            if matches!(&queued.entry, OutboxEntry::Hold(generation) if generation.origin() != Origin::Carried) {
                made_anew.push(id.clone());
            }
            self.by_id.entry(id).or_default().push(queued);
        }
        made_anew.iter().filter_map(|id| self.by_id.remove(id)).collect()
    }
}

impl Persister {
    /// Takes the next group from the outbox: up to `max` entries, without those that wait behind a postponed one.
    pub(super) fn take_group(&self, max: usize) -> Vec<Queued> {
        let mut postponed = lock(&self.postponed);
        loop {
            let mut group = self.outbox.take(max);
            let is_end = group.is_empty();
            for entries in postponed.hold_back(&mut group) {
                self.requeue(entries);
            }
            if is_end || !group.is_empty() {
                return group;
            }
        }
    }

    /// Postpones the end of a session that has no record. Another process may be about to write one.
    pub(super) fn postpone(self: &Arc<Self>, pool: &Arc<Pool>, end: Queued) {
        let id = end.entry.id().clone();
        if self.keep_postponed(end) {
            self.schedule(pool, Later::Postponed(id), HOLD_AGAIN_AFTER);
        }
    }

    /// Returns false if there is no time, or no room, to postpone it: then it is queued again.
    pub(super) fn keep_postponed(&self, end: Queued) -> bool {
        let mut postponed = lock(&self.postponed);
        // Read under the lock: a drain begins first, and queues the postponed entries then.
        let may_wait = !self.is_draining() && postponed.by_id.len() < MAX_IDS;
        if may_wait {
            postponed.by_id.insert(end.entry.id().clone(), vec![end]);
        } else {
            self.requeue(vec![end]);
        }
        may_wait
    }

    /// Queues the postponed entries of this id again. The end may be postponed once more.
    pub(super) fn requeue_postponed(&self, id: &SessionId) {
        let mut postponed = lock(&self.postponed);
        let entries = postponed.by_id.remove(id).unwrap_or_default();
        if let Some(Queued { entry: OutboxEntry::End(generation, _), .. }) = entries.first() {
            self.find_again_or_create(generation);
        }
        self.outbox.put_back(entries);
    }

    /// Queues all postponed entries again.
    pub(super) fn requeue_all_postponed(&self) {
        let mut postponed = lock(&self.postponed);
        for (_, entries) in std::mem::take(&mut postponed.by_id) {
            self.requeue(entries);
        }
    }

    /// The end creates its record, if there is still none to join. Must be called under the lock of the postponed entries.
    fn requeue(&self, entries: Vec<Queued>) {
        if let Some(Queued { entry: OutboxEntry::End(generation, _), .. }) = entries.first() {
            generation.stop_finding();
        }
        self.outbox.put_back(entries);
    }
}
