//! A subscriber for one test, while others run beside it.

use tracing::{
    Dispatch, Subscriber,
    subscriber::{DefaultGuard, NoSubscriber, set_default},
};

/// Until this is dropped, events of this thread go to the subscriber.
pub(crate) struct Listening {
    _guard: DefaultGuard,
    _second: Dispatch,
}

/// Listens on this thread. With one subscriber alone, tracing asks that of whichever thread comes to an event first
/// whether anybody wants it, and that thread may have none: so there are two.
pub(crate) fn listen(subscriber: impl Subscriber + Send + Sync + 'static) -> Listening {
    let second = Dispatch::new(NoSubscriber::new());
    Listening { _guard: set_default(subscriber), _second: second }
}
