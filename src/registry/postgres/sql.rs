//! The statements, as texts that name one schema.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

/// The present time of the server, in milliseconds since 1970. Not that of the transaction's start.
macro_rules! now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}
pub(super) use now;

/// The texts of one schema, by their templates.
type Texts = Mutex<HashMap<&'static str, &'static str>>;

/// Makes statements of templates: `{s}` is the quoted name of the schema.
///
/// The driver keeps static texts only, and 0.9 takes no others: so each one lives as long as the process, once for a template and a
/// schema.
#[derive(Clone, Copy)]
pub(super) struct Sql {
    schema: &'static str,
    texts: &'static Texts,
}

impl Sql {
    pub(super) fn new(schema: &str) -> Self {
        static SCHEMAS: LazyLock<Mutex<HashMap<String, Sql>>> = LazyLock::new(Mutex::default);
        let mut schemas = SCHEMAS.lock().unwrap_or_else(PoisonError::into_inner);
        *schemas.entry(schema.to_owned()).or_insert_with(|| Self {
            schema: format!("\"{}\"", schema.replace('"', "\"\"")).leak(),
            texts: Box::leak(Box::default()),
        })
    }

    pub(super) fn text(self, template: &'static str) -> &'static str {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.entry(template).or_insert_with(|| template.replace("{s}", self.schema).leak())
    }

    /// As [`text`](Self::text), of a template that the caller has made.
    pub(super) fn made(self, template: String) -> &'static str {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.get(template.as_str()) {
            return text;
        }
        let text = template.replace("{s}", self.schema).leak();
        texts.insert(template.leak(), text);
        text
    }

    /// The number of the advisory lock of the schema: shared by all that change records, exclusive for who adopts a holder.
    pub(super) fn lock_number(self) -> String {
        format!("hashtextextended('tower-session-end {}', 0)", self.schema.replace('\'', "''"))
    }
}
