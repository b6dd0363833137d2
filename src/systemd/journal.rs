//! Where the daemon's log goes: to journald with its fields, or to stderr for people.
//!
//! A log must never stop, block or kill the daemon, and nobody whose words are logged may forge a
//! line. journald is reached through `tracing-journald`, whose socket is made non-blocking here:
//! when journald is stopped, events are dropped. Its protocol gives each value a length, so that a
//! value may hold anything; on stderr, what is not printable is escaped.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt, sockopt,
};
use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// What `journalctl -t` finds the daemon by.
const IDENTIFIER: &str = "distrilockd";

/// Where journald listens, as `tracing-journald` has it.
const JOURNALD_PATH: &str = "/run/systemd/journal/socket";

/// How much the socket to journald shall hold; the kernel grants up to `net.core.wmem_max`.
const JOURNALD_BUFFER_BYTES: usize = 1 << 20;

/// The longest line on stderr. A pipe that polls as writable takes this much without blocking:
/// `PIPE_BUF`, pipe(7).
const LINE_BYTES_MAX: usize = 4096;

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogFault {
    /// There is a log already; a process has one.
    #[error("the log was started twice")]
    Started(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Why journald is not used although stderr is connected to it.
#[derive(Debug, thiserror::Error)]
enum JournaldFault {
    #[error("{JOURNALD_PATH}: {0}")]
    Connect(#[source] io::Error),
    #[error("/proc/self/fd: {0}")]
    Descriptors(#[source] io::Error),
    #[error("{0} sockets appeared where one was expected")]
    Sockets(usize),
    #[error("what appeared is no Unix datagram socket")]
    Kind,
    #[error("cannot make the socket non-blocking: {0}")]
    Blocks(#[source] io::Error),
}

/// Starts the log of this process, for events of `level` and above.
///
/// Events go to journald if stderr is connected to it, with their fields as journal fields, and
/// else, or if journald cannot be used without blocking, to stderr. Field names that belong to the
/// journal are in capitals: `LOCK`, `SESSION`, `PEER`, `DIALECT`, and `MESSAGE_ID` from
/// [`ids`](super::ids). Has to be called while the process has one thread, and after
/// [`sockets::take`](super::sockets::take).
///
/// # Errors
///
/// If the log was started before.
pub fn start(level: Level) -> Result<(), LogFault> {
    let level = LevelFilter::from_level(level);
    let journal = stderr_is_journal();
    if !journal {
        let people = People { prefix: false };
        return set(tracing_subscriber::registry().with(level).with(people));
    }
    match journald() {
        Ok(journald) => set(tracing_subscriber::registry().with(level).with(journald)),
        Err(fault) => {
            let people = People { prefix: true };
            set(tracing_subscriber::registry().with(level).with(people))?;
            tracing::warn!(%fault, "journald cannot be used directly, logging to stderr");
            Ok(())
        }
    }
}

fn set(subscriber: impl Subscriber + Send + Sync) -> Result<(), LogFault> {
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

/// True if stderr is the stream that systemd connected to journald: `JOURNAL_STREAM` names its
/// device and inode, systemd.exec(5). The variable alone proves nothing, it is inherited.
fn stderr_is_journal() -> bool {
    let (Ok(stream), Ok(file)) = (std::env::var("JOURNAL_STREAM"), fstat(io::stderr())) else {
        return false;
    };
    is_stream(&stream, file.st_dev, file.st_ino)
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

/// Connects to journald, so that a send never blocks.
fn journald() -> Result<tracing_journald::Layer, JournaldFault> {
    // Making the layer sends an empty datagram, which would block for ever with a journald that is
    // stopped and whose queue is full; so one is sent first that cannot.
    let first = UnixDatagram::unbound().map_err(JournaldFault::Connect)?;
    first.set_nonblocking(true).and_then(|()| first.send_to(&[], JOURNALD_PATH)).map_err(JournaldFault::Connect)?;

    let before = open_sockets().map_err(JournaldFault::Descriptors)?;
    let layer = tracing_journald::layer().map_err(JournaldFault::Connect)?;
    let after = open_sockets().map_err(JournaldFault::Descriptors)?;
    let new: Vec<RawFd> = after.difference(&before).map(|(number, _)| *number).collect();
    let [number] = new[..] else {
        return Err(JournaldFault::Sockets(new.len()));
    };
    never_block(socket_of(&layer, number))?;
    Ok(layer.with_field_prefix(None).with_syslog_identifier(IDENTIFIER.to_owned()).with_priority_mappings(priorities()))
}

/// The sockets that this process has open, by number and `socket:[inode]`, proc_pid_fd(5).
fn open_sockets() -> io::Result<BTreeSet<(RawFd, PathBuf)>> {
    let mut sockets = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|n| n.parse().ok());
        // A descriptor that another thread closed meanwhile has no link any more.
        let link = std::fs::read_link(entry.path()).ok();
        if let (Some(number), Some(link)) = (number, link)
            && link.to_string_lossy().starts_with("socket:")
        {
            sockets.insert((number, link));
        }
    }
    Ok(sockets)
}

/// The private socket of `layer`, which appeared as `number` while the layer was made.
#[expect(unsafe_code, reason = "tracing-journald does not lend its socket")]
fn socket_of(layer: &tracing_journald::Layer, number: RawFd) -> BorrowedFd<'_> {
    let _lives_as_long_as = layer;
    // SAFETY: `number` was seen open after the layer was made and not before, so it is the layer's
    // socket, which stays open while the layer is borrowed. Should it be another thread's after
    // all, it was open a moment ago, is touched only if it is a Unix datagram socket too, and is
    // never closed through this borrow.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Makes sends on a Unix datagram socket fail rather than block, and its buffer large.
fn never_block(socket: BorrowedFd<'_>) -> Result<(), JournaldFault> {
    let unix = getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    let datagram = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Datagram);
    if !unix || !datagram {
        return Err(JournaldFault::Kind);
    }
    // A small buffer only drops events earlier.
    let _ = setsockopt(&socket, sockopt::SndBuf, &JOURNALD_BUFFER_BYTES);
    let flags = fcntl(socket, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags
        .and_then(|flags| fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
        .map(drop)
        .map_err(|errno| JournaldFault::Blocks(errno.into()))
}

/// The journal's own use of priorities: what a daemon usually says is 6, syslog(3).
fn priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}

/// A log for people on stderr: one line an event, without time, which journald or the terminal's
/// user knows. Spans do not show.
struct People {
    /// Each line begins with its priority, sd-daemon(3), because stderr leads to journald.
    prefix: bool,
}

impl<S: Subscriber> Layer<S> for People {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let stderr = io::stderr();
        let bold = stderr.is_terminal();
        let mut words = Words::default();
        event.record(&mut words);
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

/// Writes a line if that does not block, and else drops it; a stderr that is closed is no error.
///
/// stderr shares its flags with whoever else has it open, so that it is not made non-blocking; one
/// thread at a time asks whether there is room, and takes it.
fn write_line(stderr: BorrowedFd<'_>, line: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
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
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;

    /// Keeps the lines that [`People`] would write.
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
                MESSAGE_ID = super::super::ids::SLOW_READER,
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
    fn the_stream_is_known_by_device_and_inode() {
        // The right pair, wrong ones that were inherited, and nonsense.
        assert!(is_stream("10:4711", 10, 4711));
        for stream in ["10:4712", "11:4711", "10", "", ":", "10:4711:", "a:b", "-1:2"] {
            assert!(!is_stream(stream, 10, 4711), "{stream}");
        }
    }

    #[test]
    fn a_journal_that_reads_nothing_does_not_block() {
        // More datagrams than any queue holds go to a socket that nobody reads.
        let (ours, _unread) = UnixDatagram::pair().unwrap();
        never_block(ours.as_fd()).unwrap();
        let full = (0..100_000).find_map(|_| ours.send(b"PRIORITY=6\n").err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn only_a_unix_datagram_socket_is_touched() {
        // Another thread's descriptor was taken for the journal's.
        let (stream, _other) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for other in [OwnedFd::from(stream), udp.into(), null.into()] {
            assert!(matches!(never_block(other.as_fd()), Err(JournaldFault::Kind)));
            let flags = fcntl(&other, FcntlArg::F_GETFL).unwrap();
            assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        }
    }

    #[test]
    fn a_new_socket_is_seen_by_its_number() {
        // A socket is opened; others come and go in other tests meanwhile.
        let before = open_sockets().unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        let after = open_sockets().unwrap();
        let ours = |(number, _): &&(RawFd, PathBuf)| *number == socket.as_raw_fd();
        assert!(after.difference(&before).any(|new| ours(&new)));
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
