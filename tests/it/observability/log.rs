//! A log that keeps all there is: the text that a reader would see, and the structure behind it.

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    fmt::format::FmtSpan,
    layer::{Context, Layer, SubscriberExt},
};

/// An event, or a span at its birth.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Said {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) fields: BTreeSet<String>,
    pub(crate) is_span: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    said: Arc<Mutex<Vec<Said>>>,
}

impl Log {
    /// Listens to everything that this thread says, for as long as the guard lives.
    pub(crate) fn listen(&self) -> DefaultGuard {
        let writer = self.clone();
        let text = tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(false)
            .with_span_events(FmtSpan::FULL)
            .with_writer(move || writer.clone());
        tracing::subscriber::set_default(tracing_subscriber::registry().with(text).with(self.clone()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }

    pub(crate) fn said(&self) -> Vec<Said> {
        self.said.lock().unwrap().clone()
    }

    fn push(&self, metadata: &Metadata<'_>, Fields(mut fields): Fields) {
        fields.remove("message");
        let (name, level, is_span) = (metadata.name().to_owned(), *metadata.level(), metadata.is_span());
        self.said.lock().unwrap().push(Said { name, level, fields, is_span });
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        self.push(attributes.metadata(), fields);
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.push(event.metadata(), fields);
    }
}

/// The names of the fields that have a value.
#[derive(Default)]
struct Fields(BTreeSet<String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned());
    }
}
