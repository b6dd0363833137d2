//! Every limit of the daemon, with its reason. Those that an administrator may want to change are
//! the defaults of flags (`settings`); docs/protocol.md, chapter 7, lists them for clients.

use std::time::Duration;

use distrilock_engine::limits::SHARDS;

/// Bytes that one read takes from a socket: the largest frame.
pub const READ_BYTES_MAX: usize = distrilock_protocol::limits::FRAME_BYTES_MAX;

/// Once this many bytes wait for a client that does not read, its further requests stay in the
/// kernel's buffer.
pub const OUTBOX_BYTES_PAUSE: usize = 64 * 1024;

/// Default of `--outbox-bytes`: how many bytes answers to waiting requests, events and lists may
/// add up to before the session is closed.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// Default of `--locks-per-session`: each costs a descriptor of the daemon.
pub const LOCKS_PER_SESSION_MAX: usize = 1024;

/// Default of `--waits-per-session`: each costs an entry in a queue.
pub const WAITS_PER_SESSION_MAX: usize = 1024;

/// Default of `--locks`: how many locks the sessions of a daemon hold or are acquiring together,
/// beyond [`LOCKS_ALWAYS`] each. Exclusive locks are bounded by descriptors already, but thousands
/// of sessions can share a lock. With the longest names, they take some 100 MB.
pub const LOCKS_MAX: usize = 262_144;

/// Locks that every session may hold or be acquiring, whatever others do.
pub const LOCKS_ALWAYS: usize = if cfg!(test) { 1 } else { 16 };

/// Default of `--waits`: how many requests of all sessions wait together, beyond [`WAITS_ALWAYS`]
/// each: enough for a few gateways that wait for many clients of their own. With the longest names
/// and ids, each takes up to 1 KiB.
pub const WAITS_MAX: usize = 2048;

/// Requests of every session that may wait, whatever others do: a job waits for one or two locks.
pub const WAITS_ALWAYS: usize = if cfg!(test) { 1 } else { 16 };

/// Requests of all sessions that do not wait for other sessions and have no answer, beyond
/// [`UNANSWERED_ALWAYS`] each. They wait for the storage. A session that would have more is not
/// read until it has fewer.
pub const UNANSWERED_MAX: usize = 65_536;

/// Such requests of every session, whatever others do: more than are under way at once.
pub const UNANSWERED_ALWAYS: usize = if cfg!(test) { 1 } else { 64 };

/// Default of `--buffer-bytes`: how many bytes the daemon keeps for all sessions together, beyond
/// [`BUFFER_BYTES_ALWAYS`] each, because they are not a whole message yet, or because a client does
/// not read.
pub const BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Such bytes of every session, whatever others do: more than most messages have.
pub const BUFFER_BYTES_ALWAYS: usize = 4096;

/// Default of `--sessions`: each costs a descriptor, and a few KiB.
pub const SESSIONS_MAX: usize = 65_536;

/// Stamps in a lock directory, each a small file that stays. A new one is counted in, which takes
/// about a millisecond with this many.
pub const STAMPS_MAX: usize = 4096;

/// After how many milliseconds a lock is shown to other daemons: whoever asks who holds a lock
/// waits for a longer time than this, and short holds cost no write.
pub const BOARD_AFTER_MS: u64 = 1000;

/// How often a daemon writes its board and reads those of others at most, in milliseconds.
pub const BOARD_EVERY_MS: u64 = 1000;

/// After reading the lock table or the other boards, the thread of the board rests this many times
/// as long as that took.
pub const BOARD_REST_FACTOR: u32 = 10;

/// How long it rests at most, in milliseconds. What took longer than a tenth of this mostly waited
/// for the storage: after a minute without a file server, the board must not stay as it is for ten.
pub const BOARD_REST_MS_MAX: u64 = 5000;

/// For how long the boards of others are read again after somebody has asked for them, in
/// milliseconds.
pub const BOARD_ASKED_MS: u64 = 10_000;

/// What was read from the boards of others is shown for this time, in milliseconds, before a
/// request that asks for it waits for the next reading.
pub const BOARD_FRESH_MS: u64 = 1500;

/// How long such a request waits at most, in milliseconds: then it is answered with what is known.
pub const BOARD_WAIT_MS_MAX: u64 = 1500;

/// Requests of a session that wait for the boards of others. Further ones are answered with what is
/// known.
pub const BOARD_QUESTIONS_MAX: usize = 16;

/// A board's content, without its first line: some thousand locks.
pub const BOARD_BYTES_MAX: usize = 1024 * 1024;

/// Locks on a board, of each shard of the engine, and in all: as many as fit into its bytes.
pub const BOARD_LOCKS_PER_SHARD_MAX: usize = BOARD_LOCKS_MAX / SHARDS;
/// See [`BOARD_LOCKS_PER_SHARD_MAX`].
pub const BOARD_LOCKS_MAX: usize = 4096;

/// Names of a shard that are looked at for its part of the board.
pub const BOARD_NAMES_MAX: usize = 4096;

/// Holders of a lock, and waiters, on a board: those who came first.
pub const BOARD_SESSIONS_MAX: usize = 8;

/// Other daemons' boards that are read: more than there are hosts with one lock directory.
pub const BOARDS_MAX: usize = 256;

/// Bytes of other daemons' boards that are read and kept in mind, those of running daemons first.
pub const BOARDS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Boards of daemons that do not run any more, and for how many milliseconds they are kept: a day,
/// so that the morning knows who held a lock at night.
pub const BOARDS_KEPT_MAX: usize = 64;
/// See [`BOARDS_KEPT_MAX`].
pub const BOARDS_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// Holders of a name that are last known: the latest ones.
pub const LAST_KNOWN_MAX: usize = 8;

/// A reply to `list` of this size gets no further lock. Even if the last lock's holders and waiters
/// have long names and notes, the reply stays far below the outbox.
pub const LIST_BYTES_ENOUGH: usize = 32 * 1024;

/// Requests of a connection that are handled in a row before the thread's other connections have
/// their turn.
pub const REQUESTS_PER_TURN_MAX: usize = 64;

/// Once work in a row has taken this long, in microseconds, others have their turn before it goes
/// on: some hundred requests, and little enough that a thread with a thousand busy connections
/// still looks at each of them every second.
pub const SLICE_US: u64 = 1000;

/// Notices of a session that are handled before it looks at the clock.
pub const NOTICES_AT_ONCE: usize = 16;

/// What follows from one input is carried out in a row up to this number of effects, and then until
/// a time slice is over. The rest is left to the main thread.
pub const EFFECTS_AT_ONCE: usize = 8;

/// Names that are counted in a shard at once, for STATUS=: some hundred microseconds. Nobody waits
/// for the shard of a million names meanwhile.
pub const COUNTED_AT_ONCE: usize = if cfg!(test) { 10 } else { 4096 };

/// Names that are read from a shard at once when names of all shards are listed in order: twice as
/// many as each shard has of a full reply, on average.
pub const NAMES_AT_ONCE: usize = 32;

/// A session with more requests than this under way keeps indexes of them. Below it, a search costs
/// no more than an index does.
pub const FEW_REQUESTS_MAX: usize = if cfg!(test) { 2 } else { 16 };

/// A session that holds more names than this keeps them in a tree. Up to it, a sorted list is
/// smaller and no slower.
pub const FEW_NAMES_MAX: usize = if cfg!(test) { 4 } else { 16 };

/// A turn of a session that is at least this long, in milliseconds, shows in STATUS=: as long as a
/// time slice, and some hundred times what a request takes.
pub const TURN_SHOWN_MS: u128 = 1;

/// A turn of a session that is longer than this, in milliseconds, is logged: people notice the
/// pause.
pub const TURN_LOGGED_MS: u128 = 50;

/// How often to check whether a client that does not read its replies has sent FIN, in
/// milliseconds: its requests stay in the kernel's buffer, with FIN behind them.
pub const HANG_UP_CHECK_MS: u64 = 250;

/// The head of an HTTP request on the WebSocket port; hyper accepts no smaller limit.
pub const HTTP_HEAD_BYTES_MAX: usize = 8192;

/// How long the head of an HTTP request may take to arrive, in seconds: a client that trickles
/// bytes is not a session yet.
pub const HTTP_HEAD_SECONDS_MAX: u64 = 10;

/// How long sending the last bytes to a peer may take, in milliseconds, once its locks are
/// released.
pub const FAREWELL_MS_MAX: u64 = 2000;

/// Bytes that are read and dropped while the last bytes are on their way: an unread byte at close
/// would make the kernel send RST (RFC 9293, section 3.10.4), which can destroy them.
pub const FAREWELL_BYTES_MAX: usize = 256 * 1024;

/// After how many milliseconds other daemons are asked again about a name for which no answer came:
/// a daemon may have acquired it since, or started.
pub const ASK_AGAIN_MS: u64 = 2000;

/// How long closed lock files are watched after the last try for a name that another process holds,
/// in milliseconds. With many thousand names no try may be due within this time; then the watch
/// starts again later.
pub const CLOSE_WATCH_MS: u64 = 2000;

/// Daemons of the same directory to which a daemon is connected, in each direction: each costs two
/// descriptors.
pub const PEERS_MAX: usize = 64;

/// Entries of `.distrilock/` that are looked at: anyone who can write the folder can fill it.
pub const FOLDER_ENTRIES_MAX: usize = 16_384;

/// Messages that are admitted from all other daemons together in a period, and the period in
/// milliseconds: some 10,000 a second, so that a flood, for example of forged messages, is no busy
/// loop, and a wake-up does not wait long behind questions about 1000 names.
pub const MESSAGES_PER_PERIOD_MAX: u32 = 256;
/// See [`MESSAGES_PER_PERIOD_MAX`].
pub const MESSAGES_PERIOD_MS: u64 = 25;

/// Messages that are admitted from one daemon before it is another's turn: if all that may connect
/// send without pause, each has a turn every 100 ms.
pub const MESSAGES_AT_ONCE: u32 = 8;

/// Messages that wait for daemons which do not read them, for all of these together: the half that
/// one daemon can have is enough for the release of a few thousand locks at once. With the longest
/// names, they take 2.5 MB.
pub const MESSAGES_UNSENT_MAX: usize = 8192;

/// Names about which other daemons are asked at once: as many as sessions. Further names are
/// polled.
pub const QUESTIONS_MAX: usize = 65_536;

/// Questions that are sent in one piece. A daemon that reads slowly misses those before the last 64
/// pieces, and is asked again.
pub const QUESTIONS_AT_ONCE: usize = 256;

/// Wake-ups that are promised to all other daemons together: as many as sessions. Names for which
/// none is promised are polled. With the longest names, they take 26 MB.
pub const PROMISES_MAX: usize = 65_536;

/// Threads that make file calls which may take long: all on a network file system, and those that
/// take a fence on a local one. When the server or the disk hangs, each requested name takes one,
/// and the others wait in a queue, which has one entry for each name at most. More threads would
/// only hang as well. Fences that wait for the mark share one raise, however many threads ask.
pub const STORAGE_THREADS_MAX: usize = 32;

/// How long a deletion on NFS may take before its process is killed, in milliseconds: measured to
/// be safe with leases of 10 s and more. A third of the tolerated silence applies if that is less.
pub const UNLINK_MS_MAX: u64 = 3000;

/// How often to check whether a call that may take long takes too long, in milliseconds: the
/// precision of `--storage-timeout`.
pub const STORAGE_CHECK_MS: u64 = 250;

/// How many held locks are proven in the background per second: with 10 s between rounds, 1000
/// locks in each.
pub const PROBES_PER_SECOND_MAX: u64 = 100;

/// Default of `--linger` on a local file system, where opening a file again costs a few
/// microseconds.
pub const LINGER: Duration = Duration::from_secs(2);

/// Default of `--linger` on a network file system, where opening a file again costs four round
/// trips to the server.
pub const NETWORK_LINGER: Duration = Duration::from_secs(60);

/// How many descriptors of released locks are kept at most: one in this many of the descriptor
/// limit, and no more than [`LINGER_FILES_MAX`].
pub const LINGER_SHARE_OF_DESCRIPTORS: u64 = 4;
/// See [`LINGER_SHARE_OF_DESCRIPTORS`].
pub const LINGER_FILES_MAX: u64 = 4096;

/// Descriptors that are kept for lock files and for the daemon itself: one in this many of the
/// descriptor limit. Once only these are left, new connections wait, so that idle connections of a
/// stranger do not keep the sessions that live from taking locks.
pub const RESERVE_SHARE_OF_DESCRIPTORS: u64 = 8;

/// The period of the budgets below, in milliseconds.
pub const LOG_PERIOD_MS: u64 = 60_000;

/// Lines a minute about one kind of thing that clients or other daemons do, such as breaking the
/// protocol: enough to see who and how. journald drops what a service logs beyond 10,000 lines in
/// 30 s, lost locks among it.
pub const LINES_PER_MINUTE_MAX: u32 = 10;

/// Lines a minute about locks that were lost: each may matter, but a client that may write into the
/// lock directory can lose as many of its own as it likes.
pub const LOSSES_PER_MINUTE_MAX: u32 = 100;

/// Default of `--audit`, locks: what was held or waited for this long, in milliseconds, is in the
/// history. A hot lock, which thousands take in turn each second, adds nothing to it.
pub const HISTORY_FROM_MS: u64 = 1000;

/// Lines a minute of each kind of event of the history. All four together stay below what journald
/// takes from a service, 10,000 lines in 30 s.
pub const HISTORY_PER_MINUTE_MAX: u32 = 4000;

/// How many released files are closed and deleted, at most, so that one file operation can be
/// tried again that has failed for lack of a descriptor or of space: each takes some ten
/// microseconds, and if that many do not help, more are unlikely to.
pub const SHEDS_PER_CALL_MAX: u32 = 16;

/// A lock that was held for this long on a local file system, in milliseconds, is looked at when it
/// is released: if its file was deleted meanwhile, that is logged.
pub const LOOK_AFTER_MS: u64 = 1000;
/// How long the deadlock detector waits before it looks, in milliseconds: sessions that begin to
/// wait one after the other cause one search. Nobody who waits for good notices such a delay.
pub const DEADLOCK_BATCH_MS: u64 = 20;

/// How many times as long as a search took the deadlock detector rests after it: searches take at
/// most a tenth of a core, whatever clients do.
pub const DEADLOCK_REST_FACTOR: u32 = 10;

/// Requests that the deadlock detector refuses in one search; then it searches again. Finding each
/// takes time in proportion to the length of its cycle.
pub const DEADLOCKS_PER_SWEEP_MAX: usize = 64;

/// Names, holders and waiters that the deadlock detector reads while it keeps a shard locked: some
/// ten microseconds. One name's queue is not divided. It has at most one entry for each session:
/// with 65,536 sessions a millisecond or two.
pub const QUEUE_ENTRIES_PER_READ: usize = 256;

/// Sessions of a cycle that a refusal names: fixing a deadlock takes only the first few.
pub const CYCLE_SHOWN_MAX: usize = 8;

/// How long taking a fence may wait for other processes that take one, in milliseconds, before the
/// request is refused. Each of them needs a write or two to the disk, and a busy disk may take
/// hundreds of milliseconds for one. A request for slots keeps its turn meanwhile: the engine's
/// `DISTURBED_MS_MAX` is longer than this.
pub const FENCE_WAIT_MS_MAX: u64 = 2000;

/// How long raising the mark of the fences may wait for another process that raises it, in
/// milliseconds. It concerns the fences of all names, and few fences in a hundred need it, so it is
/// shorter: threads that wait cannot serve others.
pub const MARK_WAIT_MS_MAX: u64 = 500;

/// The descriptors that a daemon without sessions needs, with some to spare. With fewer it does not
/// start, since parts of it would panic or work without what they need.
pub const START_DESCRIPTORS: usize = 20;

/// For this many descriptors the kernel's table has room from the start, if the limit allows as
/// many: it takes 2 MiB of the kernel's memory. Beyond that it grows when it has to.
pub const DESCRIPTORS_READY: u64 = 262_144;

/// With fewer descriptors than this, the daemon explains at start how to raise the limit: a session
/// with one lock takes two.
pub const DESCRIPTORS_LOW: u64 = 4096;
