//! The times and bounds by which the engine paces its tries, each with its reason.

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

/// The same on a network file system: a daemon asks the server at most some 500 times a second (16 shards, 32 ms a name), so
/// that a hundred names are each tried five times a second, and a few of them each 20 ms.
pub const NETWORK_RETRY_MS_MIN: u64 = 20;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_MS_MAX: u64 = 2000;
/// See [`NETWORK_RETRY_MS_MIN`].
pub const NETWORK_RETRY_US_PER_NAME: u64 = 32_000;

/// By how much the mark of the fences is raised beyond the fence that needs it: so many further fences need one write, not two.
pub const FENCES_AHEAD: u64 = 64;
