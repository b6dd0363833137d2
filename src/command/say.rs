//! What the command writes: on stdout what was asked for, on stderr what went wrong. Text of others is escaped before it comes
//! near a terminal.

use std::io::{self, IsTerminal, Write};

/// Writes to stdout. Whoever reads it may have gone, which println! would take for a bug.
pub(super) fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a line to stderr, in one piece. Whether somebody reads it changes nothing.
pub(super) fn error(message: &str) {
    let _ = io::stderr().lock().write_all(format!("distrilock: {message}\n").as_bytes());
}

/// The text without what a terminal would take for a command, and without what looks like another line.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// Letters of any script are plain; controls, and characters that turn the direction of writing or have no width, are not.
fn is_plain(c: char) -> bool {
    const UNSEEN: [std::ops::RangeInclusive<char>; 5] = [
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff9}'..='\u{fffb}',
    ];
    !c.is_control() && !UNSEEN.iter().any(|range| range.contains(&c))
}

/// A line on the terminal that goes away: it is written over by the next one, and wiped out at the end. Where stderr is no
/// terminal there is none.
pub(super) struct Passing {
    shown: bool,
}

impl Passing {
    /// None if nobody would see it.
    pub(super) fn new() -> Option<Self> {
        io::stderr().is_terminal().then_some(Self { shown: false })
    }

    /// Shows this text in the place of the one before, cut to one line of the terminal.
    pub(super) fn show(&mut self, text: &str) {
        const WIDTH: usize = 79;
        let text: String = shown(text).chars().take(WIDTH).collect();
        let _ = io::stderr().lock().write_all(format!("\r\x1b[K{text}").as_bytes());
        self.shown = true;
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
        }
    }
}

/// A time as people say it.
pub(super) fn span(milliseconds: u64) -> String {
    match milliseconds / 1000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that moves a cursor, hides text or begins a line comes through; what people write does.
    #[test]
    fn nothing_reaches_the_terminal() {
        assert_eq!(shown("Müller \u{1b}[2J\n\u{202e}x\u{9b}"), "Müller \\u{1b}[2J\\n\\u{202e}x\\u{9b}");
    }

    /// Spans have two units at most.
    #[test]
    fn spans() {
        assert_eq!(span(59_999), "59 s");
        assert_eq!(span(61_000), "1 min 1 s");
        assert_eq!(span(3_660_000), "1 h 1 min");
        assert_eq!(span(90_000_000), "1 d 1 h");
    }
}
