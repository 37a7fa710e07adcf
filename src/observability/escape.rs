//! Texts of others, made fit for a log.

use std::fmt::{self, Write};

/// Shows `text` with its control characters escaped: an error may quote what a client sent, and a line break in it would
/// be another line of the log.
pub(crate) fn escape_controls<T: fmt::Display>(text: T) -> impl fmt::Display {
    Plain(text)
}

struct Plain<T>(T);

impl<T: fmt::Display> fmt::Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(breaks) {
            let end = part.strip_suffix(breaks).unwrap_or(part);
            self.0.write_str(end)?;
            part[end.len()..].chars().try_for_each(|c| write!(self.0, "{}", c.escape_unicode()))?;
        }
        Ok(())
    }
}

/// Control characters, and the two separators of lines and paragraphs that are none.
fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::escape_controls;

    #[test]
    fn control_characters_are_escaped_and_all_else_is_left_alone() {
        let shown = |text: &str| escape_controls(text).to_string();
        assert_eq!(shown("disk full: größer als \"1\" GB"), "disk full: größer als \"1\" GB");
        assert_eq!(shown("a\nb\r\n\u{1b}[2Jc\u{85}"), r"a\u{a}b\u{d}\u{a}\u{1b}[2Jc\u{85}");
        assert_eq!(shown("\u{2028}"), r"\u{2028}");
        assert_eq!(shown(""), "");
    }
}
