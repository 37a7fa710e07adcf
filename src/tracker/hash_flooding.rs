//! Hash flooding: ids that a client has made to collide do not collide in the tracker.

use std::hash::{DefaultHasher, Hasher};

use super::{NoteSource, Noted, SHARDS, Tracker};
use crate::{session::Session, sync::lock};

/// A hash without a secret key, which a client can compute.
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
    let hashes: std::collections::BTreeSet<_> = (0..64).map(|_| tracker().hash(b"the same id")).collect();
    assert_eq!(hashes.len(), 64);
}

#[test]
fn ids_that_collide_without_the_key_spread_over_the_shards() {
    // With the unkeyed hash they would all be in one shard.
    let colliding = (0..).map(|n| format!("id-{n}")).filter(|id| Tracker::index(unkeyed(id)) == 0).take(2048);
    let tracker = tracker();
    for id in colliding {
        assert!(matches!(tracker.note(Session::try_from(id).unwrap(), NoteSource::Handle, None), Noted::Started(_)));
    }
    let fullest = tracker.shards.iter().map(|shard| lock(shard).active.len()).max();
    assert!(fullest <= Some(40), "{fullest:?} of 2048 in one of {SHARDS} shards");
}
