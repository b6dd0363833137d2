//! What each byte of a lock file means. The offsets lie far beyond the file's content: above 2^61,
//! where the main lock on a network file system ends, and below 2^63, where fcntl(2) can lock no
//! more.
//!
//! | bytes | exclusive | shared | slots |
//! |---|---|---|---|
//! | 0 to 2^61: the name is held | write | read | read |
//! | [`TURN`]: a process is taking slots | write | read | write, for a moment |
//! | [`NUMBERS`] + N: the name has N slots | write | read | read, one byte |
//! | [`SLOTS`] + I: slot I | write | read | write, the slots that the daemon has |
//! | from [`FENCE`] on: taking a fence | write | write, for a moment | write, for a moment |
//!
//! A whole-file lock, which daemons of the original take, therefore excludes all of these and is
//! excluded by each of them. Shared holders and holders of slots exclude each other because slots
//! cannot be locked under a shared lock.

use distrilock_protocol::limits::SLOTS_MAX;

/// A range of bytes: the first one and their number; 0 means all that follow.
pub(super) type Range = (i64, i64);

/// The whole file, whatever its length.
pub(super) const ALL: Range = (0, 0);

/// Byte 0 alone: a name is held while it is locked.
pub(super) const HELD: Range = (0, 1);

/// What a process locks to delete a file that nobody holds: all but byte 0.
pub(super) const DELETION: Range = (1, 0);

/// What holders of slots lock for reading.
pub(super) const SLOTS_HELD: Range = (0, 1 << 61);

const FAR: i64 = 1 << 62;

/// Locked by the process that is taking slots. There is one such process at a time, so that what it
/// finds can change in one way only: slots are given back.
pub(super) const TURN: Range = (FAR, 1);

/// One byte for each number of slots that a name can have.
pub(super) const NUMBERS: Range = (FAR + (1 << 20), SLOTS_MAX as i64 + 1);

/// One byte for each slot.
pub(super) const SLOTS: i64 = FAR + (1 << 21);

/// Locked by a process that takes a fence while others may hold the name as well.
pub(super) const FENCE: Range = (FAR + (1 << 22), 1);

/// What shared holders lock: all but [`FENCE`] and what follows it.
pub(super) const SHARED: Range = (0, FENCE.0);

/// The rest of the file.
pub(super) const BEYOND_SHARED: Range = (FENCE.0, 0);

/// The byte that means `of` slots.
pub(super) const fn number(of: u16) -> Range {
    (NUMBERS.0 + of as i64, 1)
}

/// The bytes of `count` slots, beginning with `first`.
pub(super) const fn slots(first: u16, count: u16) -> Range {
    (SLOTS + first as i64, count as i64)
}
