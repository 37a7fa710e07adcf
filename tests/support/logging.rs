//! A subscriber for one test, while others run beside it.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tracing::{
    Dispatch, Event, Level, Subscriber,
    field::Field,
    subscriber::{DefaultGuard, NoSubscriber, set_default},
};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

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

/// Warnings and errors, each as its name and its fields: `session-x sessions=2`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Listens on this thread until the guard is dropped.
    pub(crate) fn listen(&self) -> Listening {
        listen(tracing_subscriber::registry().with(self.clone()))
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            let mut text = event.metadata().name().to_owned();
            event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
                if field.name() != "message" {
                    text.push_str(&format!(" {field}={value:?}"));
                }
            });
            self.0.lock().unwrap().push(text);
        }
    }
}
