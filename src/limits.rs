//! Every limit of the daemon, with its reason. Those that an administrator may want to change are the defaults of flags
//! (`settings`); docs/protocol.md, chapter 7, tells clients about them.

use std::time::Duration;

/// Bytes that one read takes from a socket: a whole frame at its largest.
pub const READ_BYTES_MAX: usize = distrilock_protocol::limits::FRAME_BYTES_MAX;

/// Bytes that wait for a client that does not read, before its further requests are left in the kernel's buffer.
pub const OUTBOX_BYTES_PAUSE: usize = 64 * 1024;

/// Default of `--outbox-bytes`: what answers to waiting requests, events and lists may add before the session is closed.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// Default of `--locks-per-session`: each costs a descriptor of the daemon.
pub const LOCKS_PER_SESSION_MAX: usize = 1024;

/// Default of `--waits-per-session`: each costs an entry in a queue.
pub const WAITS_PER_SESSION_MAX: usize = 1024;

/// Default of `--sessions`: each costs a descriptor, and a few KiB.
pub const SESSIONS_MAX: usize = 65_536;

/// A reply to `list` that has so many bytes gets no further lock: with the last one, whose holders and waiters have names and
/// notes, it stays far below the outbox.
pub const LIST_BYTES_ENOUGH: usize = 32 * 1024;

/// Requests that a connection may have served before the thread's other connections come first.
pub const REQUESTS_PER_TURN_MAX: usize = 64;

/// How often a connection that does not read its replies is asked whether it has sent FIN, in milliseconds: its requests stay in
/// the kernel's buffer, and FIN behind them.
pub const HANG_UP_CHECK_MS: u64 = 250;

/// The head of an HTTP request on the WebSocket port; hyper takes no less.
pub const HTTP_HEAD_BYTES_MAX: usize = 8192;

/// How long an HTTP request head may take to arrive, in seconds: a client that trickles bytes is not a session yet.
pub const HTTP_HEAD_SECONDS_MAX: u64 = 10;

/// How long the last words to a peer may take, in milliseconds, once its locks are released.
pub const FAREWELL_MS_MAX: u64 = 2000;

/// Bytes that are read and dropped while the last words are on their way: an unread byte at close would make the kernel send
/// RST (RFC 9293, section 3.10.4), which can destroy them.
pub const FAREWELL_BYTES_MAX: usize = 256 * 1024;

/// The time after which other daemons are asked again for word of a name, in milliseconds, while nobody has said anything of it:
/// one may have come to hold it since, or to the directory.
pub const ASK_AGAIN_MS: u64 = 2000;

/// For how long after the last try for a name of another process closings of lock files are still watched, in milliseconds. With
/// many thousand names a try is not due within it; then the watch begins anew.
pub const CLOSE_WATCH_MS: u64 = 2000;

/// Daemons of the same directory that one of them talks with, in each direction: each costs two descriptors.
pub const PEERS_MAX: usize = 64;

/// Words that are taken from another daemon in a period, and its length in milliseconds: some 10,000 a second, so that a flood of
/// them, forged ones for example, is no busy loop, and word does not wait for long behind questions about 1000 names.
pub const MESSAGES_PER_PERIOD_MAX: u32 = 256;
/// See [`MESSAGES_PER_PERIOD_MAX`].
pub const MESSAGES_PERIOD_MS: u64 = 25;

/// Words that wait for a daemon which does not read them: as many as a daemon's release of a few thousand locks at once.
pub const MESSAGES_UNSENT_MAX: usize = 4096;

/// Names that other daemons are asked for at once, and for which they are promised word: as many as sessions. The others are
/// polled.
pub const QUESTIONS_MAX: usize = 65_536;
/// See [`QUESTIONS_MAX`].
pub const PROMISES_MAX: usize = 65_536;

/// Threads that make calls on a network file system: when the server hangs, each name that is asked for takes one, and the rest
/// waits in line. More would only hang as well.
pub const STORAGE_THREADS_MAX: usize = 32;

/// How long a deletion on NFS may take before the process that makes it is killed, in milliseconds: measured as safe with
/// leases of 10 s and more; a third of the silence that is tolerated, if that is less.
pub const UNLINK_MS_MAX: u64 = 3000;

/// How often it is looked whether a call on a network file system takes too long, in milliseconds: `--storage-timeout` is kept
/// to within this.
pub const STORAGE_CHECK_MS: u64 = 250;

/// Held locks that are proven in the background, a second at most: with 10 s between rounds, 1000 locks in each.
pub const PROBES_PER_SECOND_MAX: u64 = 100;

/// Default of `--linger` on a local file system, where opening a file again costs a few microseconds.
pub const LINGER: Duration = Duration::from_secs(2);

/// Default of `--linger` on a network file system, where it costs four questions to the server.
pub const NETWORK_LINGER: Duration = Duration::from_secs(60);

/// How many descriptors of released locks are kept at most, as a share of the descriptor limit (one in so many), and in all.
pub const LINGER_SHARE_OF_DESCRIPTORS: u64 = 4;
/// See [`LINGER_SHARE_OF_DESCRIPTORS`].
pub const LINGER_FILES_MAX: u64 = 4096;

/// Sessions of a cycle that a refusal tells of: who mends it needs the first few.
pub const CYCLE_SHOWN_MAX: usize = 8;

/// How long a fence may wait for another process that takes one, in milliseconds, before its request is refused: each of them
/// needs one write to the disk.
pub const FENCE_WAIT_MS_MAX: u64 = 200;

/// Below this many descriptors the daemon says at start how to raise the limit: a session with one lock takes two.
pub const DESCRIPTORS_LOW: u64 = 4096;
