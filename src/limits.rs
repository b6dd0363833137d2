//! Every limit of the daemon, with its reason. Those that an administrator may want to change are the defaults of flags
//! (`settings`); docs/protocol.md, chapter 7, tells clients about them.

use std::time::Duration;

/// A line, a WebSocket message or a gob message: room for any request many times over, and little enough that thousands of
/// sessions that send half a message each do not hurt.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes that one read takes from a socket: a whole frame at its largest.
pub const READ_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// Bytes that wait for a client that does not read, before its further requests are left in the kernel's buffer.
pub const OUTBOX_BYTES_PAUSE: usize = 64 * 1024;

/// Default of `--outbox-bytes`: what answers to waiting requests, events and lists may add before the session is closed.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// The largest number as a request's `id`: 2^53-1, what every JSON library can carry (RFC 8259, section 6).
pub const ID_NUMBER_MAX: u64 = (1 << 53) - 1;

/// The longest text as a request's `id`: a UUID with its punctuation and a prefix.
pub const ID_BYTES_MAX: usize = 64;

/// The longest `name` of a hello.
pub const HELLO_NAME_BYTES_MAX: usize = 128;

/// The longest `note` of a hello.
pub const HELLO_NOTE_BYTES_MAX: usize = 256;

/// The longest `host` of a hello: Linux allows a host name of 64 bytes (gethostname(2)).
pub const HELLO_HOST_BYTES_MAX: usize = 64;

/// The longest `command` of a hello: enough to tell one job from another; what is longer is for its client to shorten.
pub const HELLO_COMMAND_BYTES_MAX: usize = 256;

/// The longest `user` of a hello: useradd(8) takes names of up to 32 bytes, directories of users longer ones.
pub const HELLO_USER_BYTES_MAX: usize = 64;

/// Default of `--locks-per-session`: each costs a descriptor of the daemon.
pub const LOCKS_PER_SESSION_MAX: usize = 1024;

/// Default of `--waits-per-session`: each costs an entry in a queue.
pub const WAITS_PER_SESSION_MAX: usize = 1024;

/// Default of `--sessions`: each costs a descriptor, and a few KiB.
pub const SESSIONS_MAX: usize = 65_536;

/// Locks in one reply to `list`.
pub const LIST_LOCKS_MAX: usize = 256;

/// A reply to `list` that has so many bytes gets no further lock: with the last one, whose holders and waiters have names and
/// notes, it stays far below the outbox.
pub const LIST_BYTES_ENOUGH: usize = 32 * 1024;

/// Requests that a connection may have served before the thread's other connections come first.
pub const REQUESTS_PER_TURN_MAX: usize = 64;

/// How often a connection that does not read its replies is asked whether it has sent FIN, in milliseconds: its requests stay in
/// the kernel's buffer, and FIN behind them.
pub const HANG_UP_CHECK_MS: u64 = 250;

/// Holders, or waiters, of a lock in one reply to `list` or `peek`.
pub const LIST_SESSIONS_MAX: usize = 64;

/// The head of an HTTP request on the WebSocket port; hyper takes no less.
pub const HTTP_HEAD_BYTES_MAX: usize = 8192;

/// How long an HTTP request head may take to arrive, in seconds: a client that trickles bytes is not a session yet.
pub const HTTP_HEAD_SECONDS_MAX: u64 = 10;

/// How long the last words to a peer may take, in milliseconds, once its locks are released.
pub const FAREWELL_MS_MAX: u64 = 2000;

/// Bytes that are read and dropped while the last words are on their way: an unread byte at close would make the kernel send
/// RST (RFC 9293, section 3.10.4), which can destroy them.
pub const FAREWELL_BYTES_MAX: usize = 256 * 1024;

/// Shards of the engine: a few times the threads that a daemon uses, so that two of them seldom want the same one.
pub const SHARDS: usize = 16;

/// For how long a daemon passes a name on among its own sessions before it lets other daemons try, in milliseconds.
pub const TURN_MS: u64 = 100;

/// For how long it then leaves the name alone, in milliseconds: other daemons try again after [`RETRY_MS_MIN`] when few names
/// are contended.
pub const YIELD_MS: u64 = 10;

/// The shortest and the longest time between two tries for a name that another process holds, in milliseconds, and how much
/// each such name of a shard takes, in microseconds: all shards together make some 4,400 tries a second at most, below 2 % of a
/// core. With 1000 names (62 a shard) that is one each 220 ms; half of it is the median time from a release to the grant. The
/// longest time is reached with 44,000 names.
pub const RETRY_MS_MIN: u64 = 5;
/// See [`RETRY_MS_MIN`].
pub const RETRY_MS_MAX: u64 = 10_000;
/// See [`RETRY_MS_MIN`].
pub const RETRY_US_PER_NAME: u64 = 3600;

/// The time between two tries for a name whose holder, another daemon, promised word, in milliseconds: it may hang, or its word
/// may get lost.
pub const RECHECK_MS: u64 = 2000;

/// The time after which other daemons are asked again for word of a name, in milliseconds, while nobody has said anything of it:
/// one may have come to hold it since, or to the directory.
pub const ASK_AGAIN_MS: u64 = 2000;

/// For how long after the last try for a name of another process closings of lock files are still watched, in milliseconds. With
/// many thousand names a try is not due within it; then the watch begins anew.
pub const CLOSINGS_WATCHED_MS: u64 = 2000;

/// Daemons of the same directory that one of them talks with, in each direction: each costs two descriptors.
pub const PEERS_MAX: usize = 64;

/// Words that are taken from another daemon in a period, and its length in milliseconds: some 10,000 a second, so that a flood of
/// them, forged ones for example, is no busy loop, and word does not wait for long behind questions about 1000 names.
pub const WORDS_PER_PERIOD_MAX: u32 = 256;
/// See [`WORDS_PER_PERIOD_MAX`].
pub const WORDS_PERIOD_MS: u64 = 25;

/// Words that wait for a daemon which does not read them: as many as a daemon's release of a few thousand locks at once.
pub const WORDS_UNSENT_MAX: usize = 4096;

/// Names that other daemons are asked for at once, and for which they are promised word: as many as sessions. The others are
/// polled.
pub const QUESTIONS_MAX: usize = 65_536;
/// See [`QUESTIONS_MAX`].
pub const PROMISES_MAX: usize = 65_536;

/// The same on a network file system: a daemon asks the server at most some 500 times a second (16 shards, 32 ms a name), so
/// that a hundred names are each tried five times a second, and a few of them each 20 ms.
pub const NETWORK_RETRY_MS_MIN: u64 = 20;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_MS_MAX: u64 = 2000;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_US_PER_NAME: u64 = 32_000;

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

/// Slots that a name may have: more than licences or machines are counted in, and a reply that names them all stays short.
pub const SLOTS_MAX: u16 = 1024;

/// Locks that one request may ask for: as many as people list by hand, and more than enough of the longest names for a message.
pub const LOCKS_PER_REQUEST_MAX: usize = 64;

/// Sessions of a cycle that a refusal tells of: who mends it needs the first few.
pub const CYCLE_SHOWN_MAX: usize = 8;

/// How long a fence may wait for another process that takes one, in milliseconds, before its request is refused: each of them
/// needs one write to the disk.
pub const FENCE_WAIT_MS_MAX: u64 = 200;

/// By how much the mark of the fences is raised beyond the fence that needs it: so many further fences need one write, not two.
pub const FENCES_AHEAD: u64 = 64;

/// Below this many descriptors the daemon says at start how to raise the limit: a session with one lock takes two.
pub const DESCRIPTORS_LOW: u64 = 4096;
