//! Texts of user code and of clients, made fit for a log.

use std::{
    error::Error,
    fmt::{self, Write},
};

/// Shows `text` with its control characters escaped. An error may quote what a client sent, and a line break in it
/// would forge a line of the log.
pub(crate) fn escape_controls<T: fmt::Display>(text: T) -> impl fmt::Display {
    EscapeControls(text)
}

struct EscapeControls<T>(T);

impl<T: fmt::Display> fmt::Display for EscapeControls<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(must_escape) {
            let plain = part.strip_suffix(must_escape).unwrap_or(part);
            self.0.write_str(plain)?;
            part[plain.len()..].chars().try_for_each(|c| write!(self.0, "{}", c.escape_unicode()))?;
        }
        Ok(())
    }
}

/// Control characters, and the separators of lines and paragraphs, which Unicode does not count among them.
fn must_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Shows an error and its sources, as `error: source: source of the source`. A source whose text the text before it
/// already contains is left out: many errors repeat their source.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> impl fmt::Display {
    ErrorChain(error)
}

/// At most this many errors of a chain are shown: `source` is user code, and its chain may be endless.
const MAX_CHAIN: usize = 16;

struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.0.to_string();
        f.write_str(&before)?;
        let mut next = self.0.source();
        for _ in 1..MAX_CHAIN {
            let Some(source) = next else { break };
            let text = source.to_string();
            if !before.contains(&text) {
                write!(f, ": {text}")?;
                before = text;
            }
            next = source.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_all_else_is_left_alone() {
        let shown = |text: &str| escape_controls(text).to_string();
        assert_eq!(shown("disk full: größer als \"1\" GB"), "disk full: größer als \"1\" GB");
        assert_eq!(shown("a\nb\r\n\u{1b}[2Jc\u{85}"), r"a\u{a}b\u{d}\u{a}\u{1b}[2Jc\u{85}");
        assert_eq!(shown("\u{2028}"), r"\u{2028}");
        assert_eq!(shown(""), "");
    }

    #[derive(Debug)]
    struct Layered(&'static str, Option<Box<Self>>);

    impl fmt::Display for Layered {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layered {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    #[test]
    fn an_error_is_shown_with_its_sources_each_once() {
        let chain = |texts: &[&'static str]| {
            let error = texts.iter().rev().fold(None, |source, text| Some(Box::new(Layered(text, source))));
            error_chain(&*error.unwrap()).to_string()
        };
        assert_eq!(chain(&["cannot connect"]), "cannot connect");
        assert_eq!(chain(&["cannot save", "cannot connect", "refused"]), "cannot save: cannot connect: refused");
        assert_eq!(chain(&["cannot save: refused", "refused"]), "cannot save: refused");
    }

    /// Its own source.
    #[derive(Debug)]
    struct Endless(std::cell::Cell<u32>);

    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            write!(f, "{:x<n$}", "", n = self.0.get() as usize)
        }
    }

    impl Error for Endless {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn an_endless_chain_is_cut_off() {
        let shown = error_chain(&Endless(0.into())).to_string();
        assert_eq!(shown.split(": ").count(), MAX_CHAIN);
    }
}
