//! The conformance kit on the registry in memory: it fulfils the contract, and so the other tests are about the crate.

use tower_session_end::{
    GenerationId,
    registry::conformance::{Store as Kit, check},
};

use crate::support::store::{Fault, Holder, Store};

impl Kit for Store {
    type Holder = Holder;

    async fn holder(&self) -> Holder {
        Self::holder(self)
    }

    async fn kill(&self, holder: Holder) {
        holder.kill();
        holder.set(Fault::Hangs);
    }

    async fn redeliver(&self, _: &Holder, generation: GenerationId) -> bool {
        assert!(Self::redeliver(self, generation), "no such dead letter");
        true
    }
}

#[tokio::test(start_paused = true)]
async fn g15_g16_the_conformance_kit_on_the_registry_in_memory() {
    let store = Store::default();
    check(&store).await;
    assert!(store.events().is_empty() && store.dead_letters().is_empty(), "left {:?}", store.events());
    assert!(store.notices().is_empty(), "left {:?}", store.notices());
}
