//! The log on stderr, for people: one line per event.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::history_target::HISTORY_TARGET;
use crate::sync::locked;

/// The longest line on stderr. A pipe that polls as writable takes this much without blocking:
/// `PIPE_BUF`, pipe(7).
const LINE_BYTES_MAX: usize = 4096;

/// How a time is written: UTC, as RFC 3339 has it, with milliseconds.
const TIME: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

/// A log for people on stderr: one line an event. Only events of the history have a time: others
/// are for whoever looks at the terminal, and journald knows it. Spans do not show.
pub(super) struct Lines {
    /// Each line begins with its priority, sd-daemon(3), because stderr leads to journald.
    pub(super) prefix: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let stderr = io::stderr();
        let bold = stderr.is_terminal();
        let mut words = Words::default();
        event.record(&mut words);
        if !self.prefix && event.metadata().target() == HISTORY_TARGET {
            words.message.insert_str(0, &format!("{} ", Timestamp::now().strftime(TIME)));
        }
        write_line(stderr.as_fd(), &line(*event.metadata().level(), &words, self.prefix, bold));
    }
}

/// Puts an event's line together, at most [`LINE_BYTES_MAX`] long with its end.
fn line(level: Level, words: &Words, prefix: bool, bold: bool) -> String {
    let (number, name) = match level {
        Level::ERROR => (3, "ERROR"),
        Level::WARN => (4, " WARN"),
        Level::INFO => (6, " INFO"),
        Level::DEBUG => (7, "DEBUG"),
        Level::TRACE => (7, "TRACE"),
    };
    let prefix = if prefix { format!("<{number}>") } else { String::new() };
    let (on, off) = if bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let mut line = format!("{prefix}{on}{name}{off} {}{}", words.message, words.fields);
    if line.len() >= LINE_BYTES_MAX {
        let mut end = LINE_BYTES_MAX - "...\n".len();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push_str("...");
    }
    line.push('\n');
    line
}

/// Writes a line if that does not block, and otherwise drops it; a closed stderr is not an error.
///
/// stderr shares its flags with all other processes that have it open, so it is not made
/// non-blocking; one thread at a time asks whether there is room, and uses it.
fn write_line(stderr: BorrowedFd<'_>, line: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = locked(&ONE_AT_A_TIME);
    let mut ready = [PollFd::new(stderr, PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) != Ok(1) {
        return;
    }
    let writable = |events: PollFlags| events.contains(PollFlags::POLLOUT) && !events.intersects(PollFlags::POLLNVAL);
    if ready[0].revents().is_some_and(writable) {
        // The one call that takes the whole line, or fails: nothing is done about an error, since
        // there is nowhere left to say it.
        let _ = nix::unistd::write(stderr, line.as_bytes());
    }
}

/// An event's message and other fields, escaped.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn add(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => escape(&mut self.message, value, false),
            // Means something to journalctl only.
            "MESSAGE_ID" => {}
            name => {
                self.fields.push(' ');
                self.fields.push_str(name);
                self.fields.push('=');
                let plain = |c: char| c.is_alphanumeric() || "-._:/@%+,[]".contains(c);
                if !value.is_empty() && value.chars().all(plain) {
                    self.fields.push_str(value);
                } else {
                    self.fields.push('"');
                    escape(&mut self.fields, value, true);
                    self.fields.push('"');
                }
            }
        }
    }
}

/// Appends `value` so that it is one line of printable text, and cannot end its quotes.
fn escape(to: &mut String, value: &str, quoted: bool) {
    for c in value.chars() {
        match c {
            '"' if !quoted => to.push(c),
            '\'' => to.push(c),
            _ => to.extend(c.escape_debug()),
        }
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a string fails only if `value` says so; what it wrote until then is shown.
        let _ = write!(text, "{value:?}");
        self.add(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps the lines that [`Lines`] would write.
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let mut words = Words::default();
            event.record(&mut words);
            let line = line(*event.metadata().level(), &words, false, false);
            self.0.lock().unwrap().push(line);
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<String> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Kept(Arc::clone(&kept)));
        tracing::subscriber::with_default(subscriber, log);
        std::mem::take(&mut *kept.lock().unwrap())
    }

    #[test]
    fn an_event_is_one_short_line() {
        // The usual event: a message, a name, a number, and an id for the journal only.
        let lines = lines(|| {
            tracing::info!(
                LOCK = %"backup",
                waiters = 3,
                MESSAGE_ID = crate::systemd::ids::SLOW_READER,
                PEER = "[::1]:40800",
                "it's \"held\""
            );
            tracing::error!("no fields");
        });
        assert_eq!(lines, [" INFO it's \"held\" LOCK=backup waiters=3 PEER=[::1]:40800\n", "ERROR no fields\n"]);
    }

    #[test]
    fn a_peer_cannot_forge_a_line() {
        // A peer's words hold line breaks, quotes, a terminal's controls and reversed text.
        let evil = "x\" LOCK=y\r\n<0>PANIC \u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2028}\0\\";
        let lines = lines(|| {
            tracing::warn!(name = evil, shown = %evil, debugged = ?evil, "said {evil}");
        });
        assert_eq!(lines.len(), 1);
        let line = lines[0].strip_suffix('\n').unwrap();
        assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line:?}");
        assert!(line.contains(r#" name="x\" LOCK=y\r\n<0>PANIC \u{1b}[2J"#), "{line}");
    }

    #[test]
    fn a_line_has_a_limit() {
        // A message of a megabyte, whose limit falls into a character of several bytes.
        let lines = lines(|| tracing::info!("{}", "é".repeat(1 << 20)));
        assert!(lines[0].len() <= LINE_BYTES_MAX);
        assert!(lines[0].ends_with("é...\n"));
    }

    #[test]
    fn lines_for_the_journal_begin_with_their_priority() {
        // stderr leads to the journal, but journald's own socket could not be used.
        let begin = |level| line(level, &Words::default(), true, false)[..3].to_owned();
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(begin), ["<3>", "<4>", "<6>", "<7>", "<7>"]);
        let bold = line(Level::INFO, &Words::default(), false, true);
        assert_eq!(bold, "\x1b[1m INFO\x1b[0m \n");
    }

    #[test]
    fn a_stderr_that_is_full_or_closed_does_no_harm() {
        // Nobody reads a pipe and a socket; then their readers are gone.
        let (mut out, pipe) = io::pipe().unwrap();
        let (stream, unread) = UnixStream::pair().unwrap();
        let longest = "x".repeat(LINE_BYTES_MAX - 1) + "\n";
        for line in [longest.as_str(), "short\n"] {
            for _ in 0..10_000 {
                write_line(pipe.as_fd(), line);
                write_line(stream.as_fd(), line);
            }
        }
        let mut whole = vec![0; longest.len()];
        out.read_exact(&mut whole).unwrap();
        assert_eq!(whole, longest.as_bytes());
        drop((out, unread));
        write_line(pipe.as_fd(), "nobody hears\n");
        write_line(stream.as_fd(), "nobody hears\n");
    }
}
