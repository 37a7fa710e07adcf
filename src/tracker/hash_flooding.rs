//! Ids that are made to collide find nothing to collide in.

use std::hash::{DefaultHasher, Hasher};

use super::{NoteSource, Noted, SHARDS, Tracker};
use crate::{session::Session, sync::lock};

/// As everybody can compute it.
fn unkeyed(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(id.as_bytes());
    hasher.finish()
}

fn tracker() -> Tracker {
    Tracker::new(false, false, true, None)
}

#[test]
fn every_handle_hashes_with_a_key_of_its_own() {
    let hashes: std::collections::BTreeSet<_> = (0..64).map(|_| tracker().hash(b"one and the same")).collect();
    assert_eq!(hashes.len(), 64);
}

#[test]
fn ids_that_are_made_to_collide_without_the_key_spread_over_the_shards_like_any_others() {
    // All in one shard, if the hash were one that a client can compute.
    let made = (0..).map(|n| format!("id-{n}")).filter(|id| Tracker::index(unkeyed(id)) == 0).take(2048);
    let tracker = tracker();
    for id in made {
        assert!(matches!(tracker.note(Session::try_from(id).unwrap(), NoteSource::Handle, None), Noted::Started(_)));
    }
    let fullest = tracker.shards.iter().map(|shard| lock(shard).table.len()).max();
    assert!(fullest <= Some(40), "{fullest:?} of 2048 in one of {SHARDS} shards");
}
