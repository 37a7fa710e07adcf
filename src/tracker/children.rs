//! Parents and children: when a session ends, its active children end after it, with reason
//! [`Parent`](EndReason::Parent).
//!
//! A child is linked under the lock of its parent's shard, after it was inserted into its own. The rule that makes this
//! safe: *a child ends if an end of its parent is claimed after the child has started*. The end finds the children that
//! are linked; a child that links later finds the tombstone of that end.

use std::sync::Arc;

use super::{
    Tracker,
    clock::Nanos,
    generation::{Generation, ParentLink, PendingEnd, Scope},
    order::AfterUnlock,
    shard::Shard,
};
use crate::session::{EndReason, Phase, Session, SessionId};

/// What a step under a shard's lock leaves to be done about a child.
pub(super) enum ChildStep {
    /// It has started. With the active generation of its parent before that.
    Link(Arc<Generation>, Option<Arc<Generation>>),
    /// It was claimed.
    Unlink(Arc<Generation>),
    /// Its parent has ended.
    End(Arc<Generation>, Scope),
}

impl Tracker {
    /// Must be called before the generation is inserted.
    #[cold]
    pub(super) fn set_parent(
        &self,
        generation: &Arc<Generation>,
        id: SessionId,
        parent: Option<Arc<Generation>>,
        after_unlock: &mut AfterUnlock,
    ) {
        // A session is not its own child.
        if id != generation.id {
            generation.with_extra(|extra| extra.parent = Some(ParentLink { parent: id, since: self.claim_number() }));
            after_unlock.children.push(ChildStep::Link(Arc::clone(generation), parent));
        }
    }

    /// The active parent of a session that may start. Must be called with no lock held.
    #[inline]
    pub(super) fn parent_of(&self, session: &Session) -> Option<Arc<Generation>> {
        session.parent.as_ref().and_then(|parent| self.find(parent.as_bytes()))
    }

    /// The active parent of the active generation of `id`. Must be called with no lock held.
    pub(super) fn parent_of_active(&self, id: &[u8]) -> Option<Arc<Generation>> {
        let link = self.find(id)?.parent_link()?;
        self.find(link.parent.as_bytes())
    }

    /// Must be called under the lock of the parent's shard, after the claim of its end. With `is_done`, that end has no
    /// hook that the children wait for.
    #[inline(never)]
    pub(super) fn end_children(
        &self,
        shard: &mut Shard,
        parent: &Arc<Generation>,
        end: &PendingEnd,
        is_done: bool,
        after_unlock: &mut AfterUnlock,
    ) {
        // A shutdown ends the children itself, with its own reason.
        if self.phase() >= Phase::Closing && end.reason == self.shutdown_reason() {
            return;
        }
        for child in shard.children.remove(&parent.id).into_iter().flatten().map(|(_, child)| child) {
            if child.is_active() {
                if !is_done {
                    parent.add_successor(&child);
                }
                after_unlock.children.push(ChildStep::End(child, end.scope));
            }
        }
    }

    /// As [`end_children`](Self::end_children), of those that started before this moment: their parent ended then in another
    /// process, and goes on as a new generation.
    pub(super) fn end_earlier_children(
        &self,
        shard: &mut Shard,
        parent: &Generation,
        at: Nanos,
        after_unlock: &mut AfterUnlock,
    ) {
        if let Some(children) = shard.children.get_mut(&parent.id) {
            let earlier = children.extract_if(|_, child| child.started_at <= at).map(|(_, child)| child);
            let active = earlier.filter(|child| child.is_active());
            after_unlock.children.extend(active.map(|child| ChildStep::End(child, Scope::Here)));
            if children.is_empty() {
                shard.children.remove(&parent.id);
            }
        }
    }

    /// Must be called with no lock held.
    pub(super) fn apply_to_child(&self, step: ChildStep, after_unlock: &mut AfterUnlock) {
        match step {
            ChildStep::Link(child, parent) => self.link(&child, parent, after_unlock),
            ChildStep::Unlink(child) => self.unlink(&child),
            ChildStep::End(child, scope) => {
                let hash = self.hash_of(&child);
                let mut shard = self.shard(hash);
                if child.is_active() {
                    let end = self.pending_end(EndReason::Parent, scope);
                    self.claim_with_end(&mut shard, hash, &child, end, after_unlock);
                }
            }
        }
    }

    /// With `known`, a parent that has been compacted and retired by now is followed too.
    fn link(&self, child: &Arc<Generation>, mut known: Option<Arc<Generation>>, after_unlock: &mut AfterUnlock) {
        while let Some(ParentLink { parent, since }) = child.parent_link() {
            let hash = self.hash(parent.as_bytes());
            let mut shard = self.shard(hash);
            // A claim that comes after this read unlinks it, under this lock.
            if !child.is_active() {
                return;
            }
            if shard.find_active(hash, parent.as_bytes()).is_none() && shard.tombstones.claimed_since(hash, since) {
                if shard.tombstones.ended_since(hash, since) {
                    // Its own end waits for theirs.
                    for ending in shard.generations(hash, &parent).filter(|generation| !generation.is_compacted()) {
                        ending.add_successor(child);
                    }
                    after_unlock.children.push(ChildStep::End(Arc::clone(child), Scope::Here));
                    return;
                }
                let since = shard.tombstones.last_claim(hash).unwrap_or(since);
                let claimed = shard.generations(hash, &parent).max_by_key(|generation| generation.number).cloned();
                let known_claimed = known.take().filter(|generation| generation.id == parent);
                if let Some(successor) = claimed.or(known_claimed).and_then(|generation| generation.successor()) {
                    // Since that compaction. A session is not its own child.
                    let link = (successor.id != child.id).then(|| ParentLink { parent: successor.id.clone(), since });
                    child.with_extra(|extra| extra.parent = link);
                    known = Some(successor);
                    continue;
                }
            }
            shard.children.entry(parent).or_default().insert(child.number, Arc::clone(child));
            return;
        }
    }

    fn unlink(&self, child: &Generation) {
        while let Some(ParentLink { parent, .. }) = child.parent_link() {
            let mut shard = self.shard(self.hash(parent.as_bytes()));
            // A compaction of the parent changes the link, under this lock.
            if child.parent_link().is_none_or(|link| link.parent != parent) {
                continue;
            }
            if let Some(children) = shard.children.get_mut(&parent) {
                children.remove(&child.number);
                if children.is_empty() {
                    shard.children.remove(&parent);
                }
            }
            return;
        }
    }
}
