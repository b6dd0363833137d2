//! The times and bounds by which the engine paces its tries, each with its reason.

/// Shards of the engine: a few times the number of threads that a daemon uses, so that two threads
/// rarely want the same shard.
pub const SHARDS: usize = 16;

/// How long a daemon passes a name on among its own sessions before it lets other daemons try, in
/// milliseconds.
pub const TURN_MS: u64 = 100;

/// How long it then leaves the name alone, in milliseconds: other daemons try again after
/// [`RETRY_MS_MIN`] when few names are contended.
pub const YIELD_MS: u64 = 10;

/// The shortest and the longest time between two tries for a name that another process holds, in
/// milliseconds, and how much each such name of a shard adds, in microseconds. All shards together
/// make at most some 4,400 tries a second, below 2 % of a core. With 1000 names (62 a shard), each
/// is tried every 220 ms; half of that is the median time from a release to the grant. The longest
/// time is reached with 44,000 names.
pub const RETRY_MS_MIN: u64 = 5;
/// See [`RETRY_MS_MIN`].
pub const RETRY_MS_MAX: u64 = 10_000;
/// See [`RETRY_MS_MIN`].
pub const RETRY_US_PER_NAME: u64 = 3600;

/// The time in milliseconds between two tries for a name whose holder, another daemon, has promised
/// a wake-up on release: that daemon may hang, or the wake-up may get lost.
pub const RECHECK_MS: u64 = 2000;

/// The shortest time between two tries on a network file system. A daemon asks the server at most
/// some 500 times a second (16 shards, 32 ms a name): a hundred names are each tried five times a
/// second, and a few names every 20 ms.
pub const NETWORK_RETRY_MS_MIN: u64 = 20;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_MS_MAX: u64 = 2000;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_US_PER_NAME: u64 = 32_000;

/// How far the mark of the fences is raised beyond the fence that needs it: this many further
/// fences need one write instead of two.
pub const FENCES_AHEAD: u64 = 64;

/// The highest mark above which fences are still granted: the numbers that follow it have room.
/// With a million fences a second, no daemon comes this far in 500,000 years; what stands above it
/// was forged or damaged.
pub const MARK_MAX: u64 = u64::MAX - FENCES_AHEAD;

/// A linger lasts this many ticks, and up to one more.
pub(crate) const LINGER_TICKS: u8 = if cfg!(test) { 1 } else { 4 };

/// How often a try is repeated, every [`RETRY_MS_MIN`], when nobody holds the lock but a process is
/// deleting its file, or keeps its turn while it waits for a fence. After this many tries, and
/// [`DISTURBED_MS_MAX`], the request is refused as a failure of the storage: to say that the name
/// is held would be false.
pub(crate) const DISTURBED_MAX: u8 = if cfg!(test) { 1 } else { 50 };
/// See [`DISTURBED_MAX`]. A fence may wait for other processes for 2 s. On a network file system a
/// deletion may take 3 s, and the calls before it on a slow server as much again.
pub(crate) const DISTURBED_MS_MAX: u64 = if cfg!(test) { 0 } else { 6000 };

/// Requests that wait for one name. Some events concern all of them at once, for example that the
/// name turns out to be held with another number of slots: refusing that many takes a few
/// milliseconds.
pub const QUEUE_MAX: usize = 16_384;

/// Questions about one name, such as verify and peek, that wait for a file operation: an operation
/// answers all of them at once, and that takes a few milliseconds.
pub const QUERIES_MAX: usize = if cfg!(test) { 64 } else { 4096 };

/// How many shared requests enter at once after a try or a probe has shown that the lock is real.
/// The next ones enter after another probe: a step stays below a millisecond.
pub(crate) const GRANTS_MAX: usize = if cfg!(test) { 2 } else { 256 };

/// How many waiting requests a failure of the storage refuses at once; the next ones get another
/// try. Each costs less than a microsecond.
pub(crate) const REFUSALS_MAX: usize = if cfg!(test) { 2 } else { 1024 };

/// Up to this many holders or waiters are a plain list; beyond it they have indexes. Below it, a
/// search costs no more than an index does.
pub(crate) const SHORT_LINE_MAX: usize = if cfg!(test) { 1 } else { 64 };
