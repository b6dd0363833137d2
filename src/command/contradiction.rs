//! Command lines that can be read, and make no sense.

use super::values::BadValue;
use distrilock_protocol::limits::HELLO_NOTE_BYTES_MAX;

/// Options that each make sense, but not together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Contradiction {
    #[error(transparent)]
    Value(#[from] BadValue),
    #[error("-N gives one NAME its slots, and there are several; use --lease RES=COUNT:TOTAL for each of the others")]
    SlotsOfSeveral,
    #[error("-s goes with neither -N nor --lease: a slot belongs to one holder")]
    SharedSlots,
    #[error("a note has at most {HELLO_NOTE_BYTES_MAX} bytes and no control characters")]
    Note,
    #[error("there is no CMD to run; to hold a lock without one, use: distrilock lock NAME")]
    NoCommand,
    #[error(
        "there is no CMD to run, and {0} looks like a file descriptor: a lock of the network cannot be put on one; \
         put what follows into a script and run that, or keep the lock with: coproc distrilock lock NAME"
    )]
    Descriptor(String),
    #[error("options come before NAME, and {} comes after it; a CMD that begins with a dash has to be ./{}", .0.escape_debug(), .0.escape_debug())]
    LateOption(String),
    #[error("try does not wait; use: distrilock lock -w TIME NAME")]
    TryWaits,
    #[error("-c takes exactly one string, and no CMD beside it")]
    OneString,
}
