//! What the command prints: results on stdout, errors on stderr. Text that comes from others is
//! escaped before it reaches a terminal.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::error::CommandError;

/// Prints to stdout. A reader that is gone, as under head(1), ends the command without a word.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    write(text).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CommandError::ReaderGone,
        _ => CommandError::system("write to stdout")(error),
    })
}

/// Writes to stdout, and leaves it to the caller to say what a failure means.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints a line to stderr, in one write. It makes no difference whether anybody reads it.
pub(super) fn message(text: &str) {
    let _ = io::stderr().lock().write_all(format!("distrilock: {text}\n").as_bytes());
}

/// Prints an error to stderr, escaped, and returns its exit status; `busy` is the one for a lock
/// that cannot be acquired.
pub(super) fn report(error: &CommandError, busy: u8) -> u8 {
    if matches!(error, CommandError::ReaderGone) {
        return error.status(busy);
    }
    error.to_string().lines().for_each(|line| message(&escaped(line)));
    error.status(busy)
}

/// The text without anything that a terminal would take for a command or that looks like another
/// line.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_default());
        }
    }
    escaped
}

/// The rows as lines, with each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// A value as a line of JSON that can be shown on a terminal: what [`escaped`] would escape is
/// written as `\u` and four hexadecimal digits (RFC 8259, section 7), which means the same.
pub(super) fn json_line(value: &Value) -> String {
    let mut line = String::new();
    for c in value.to_string().chars() {
        if is_plain(c) {
            line.push(c);
        } else {
            // Such a character can only be inside a text.
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
        }
    }
    line.push('\n');
    line
}

/// Letters of any script are plain. Control characters are not, nor are characters that change the
/// writing direction or have no width.
fn is_plain(c: char) -> bool {
    const INVISIBLE: [std::ops::RangeInclusive<char>; 8] = [
        '\u{ad}'..='\u{ad}',
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff9}'..='\u{fffb}',
        '\u{e0000}'..='\u{e007f}',
    ];
    !c.is_control() && !INVISIBLE.iter().any(|range| range.contains(&c))
}

/// A self-erasing line on the terminal: each text replaces the one before, and the last one is
/// erased at the end.
pub(super) struct StatusLine {
    shown: bool,
}

impl StatusLine {
    /// Returns `None` if stderr is not a terminal, since nobody would see the line.
    pub(super) fn new() -> Option<Self> {
        io::stderr().is_terminal().then_some(Self { shown: false })
    }

    /// Shows this text in place of the previous one, cut to one line of the terminal.
    pub(super) fn show(&mut self, text: &str) {
        const WIDTH: usize = 79;
        let text: String = escaped(text).chars().take(WIDTH).collect();
        let _ = io::stderr().lock().write_all(format!("\r\x1b[K{text}").as_bytes());
        self.shown = true;
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
        }
    }
}

/// A duration for people, in at most two units.
pub(super) fn duration(milliseconds: u64) -> String {
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

    /// Nothing that moves the cursor, hides text or begins a line comes through; ordinary writing
    /// does.
    #[test]
    fn nothing_reaches_the_terminal() {
        assert_eq!(escaped("Müller \u{1b}[2J\n\u{202e}x\u{9b}"), "Müller \\u{1b}[2J\\n\\u{202e}x\\u{9b}");
    }

    /// What is printed as JSON means the same, and moves nothing on a terminal.
    #[test]
    fn json_reaches_no_terminal() {
        let text = "M\u{fc}ller \u{1b}[2J \u{9b}2J \u{202e}x\u{2066}\u{7f}\u{e0041}";
        let line = json_line(&serde_json::json!({ "note": text }));
        assert_eq!(line, "{\"note\":\"M\u{fc}ller \\u001b[2J \\u009b2J \\u202ex\\u2066\\u007f\\udb40\\udc41\"}\n");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["note"], text);
    }

    /// A duration has at most two units.
    #[test]
    fn durations() {
        assert_eq!(duration(59_999), "59 s");
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(duration(3_660_000), "1 h 1 min");
        assert_eq!(duration(90_000_000), "1 d 1 h");
    }
}
