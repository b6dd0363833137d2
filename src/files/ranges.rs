//! Which bytes of a lock file mean what. The offsets lie far beyond what the file contains, below 2^63, which is the end of what
//! fcntl(2) can lock, and above 2^61, up to which a network file system's main lock goes.
//!
//! | bytes | exclusive | shared | slots |
//! |---|---|---|---|
//! | 0 to 2^61: held | write | read | read |
//! | [`TURN`]: takes slots | write | read | write, for the moment of taking |
//! | [`NUMBERS`] + N: has N slots | write | read | read, one byte |
//! | [`SLOTS`] + I: slot I | write | read | write, the slots that the daemon has |
//! | [`FENCE`] and all beyond: takes a fence | write | write, for the moment | write, for the moment |
//!
//! So a whole-file lock, as daemons of the original have it, excludes all of them, and is excluded by each. Shared holders and
//! holders of slots exclude each other, since slots cannot be locked under a shared lock.

use distrilock_protocol::limits::SLOTS_MAX;

/// A range of bytes: the first one and how many; 0 is all that follow.
pub(super) type Range = (i64, i64);

/// The whole file, and all that it could become.
pub(super) const ALL: Range = (0, 0);

/// Byte 0 alone: a name is held when it is locked.
pub(super) const HELD: Range = (0, 1);

/// What a process locks that deletes a file which nobody holds: all but byte 0.
pub(super) const DELETION: Range = (1, 0);

/// What holders of slots lock for reading.
pub(super) const SLOTS_HELD: Range = (0, 1 << 61);

const FAR: i64 = 1 << 62;

/// Locked by the process that takes slots: one at a time, so that what it finds stays so but for what is given back.
pub(super) const TURN: Range = (FAR, 1);

/// A byte each for every number of slots that a name can have.
pub(super) const NUMBERS: Range = (FAR + (1 << 20), SLOTS_MAX as i64 + 1);

/// A byte each for every slot.
pub(super) const SLOTS: i64 = FAR + (1 << 21);

/// Locked by the process that takes a fence while others may hold the name as well.
pub(super) const FENCE: Range = (FAR + (1 << 22), 1);

/// What shared holders lock: all but what takes a fence.
pub(super) const SHARED: Range = (0, FENCE.0);

/// What is beyond that.
pub(super) const BEYOND_SHARED: Range = (FENCE.0, 0);

/// The byte that means `of` slots.
pub(super) const fn number(of: u16) -> Range {
    (NUMBERS.0 + of as i64, 1)
}

/// The bytes of so many slots from the first one on.
pub(super) const fn slots(first: u16, count: u16) -> Range {
    (SLOTS + first as i64, count as i64)
}
