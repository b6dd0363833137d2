//! Command lines that parse but make no sense.

use super::values::ValueError;
use distrilock_protocol::limits::HELLO_NOTE_BYTES_MAX;

/// Options that make sense one by one, but not together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UsageError {
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error("-N sets the slots of one NAME, but there are several; use --lease RES=COUNT:TOTAL for each of the others")]
    SlotsOfSeveral,
    #[error("-s cannot be combined with -N or --lease: a slot belongs to one holder")]
    SharedSlots,
    #[error("a note can be at most {HELLO_NOTE_BYTES_MAX} bytes long and cannot contain control characters")]
    Note,
    #[error("there is no CMD to run; to hold a lock without one, use: distrilock lock NAME")]
    NoCommand,
    #[error(
        "there is no CMD to run, and {0} looks like a file descriptor: a network lock cannot be put on one; put the \
         commands that follow into a script and run that, or hold the lock with: coproc distrilock lock NAME"
    )]
    Descriptor(String),
    #[error("options must come before NAME, but {} comes after it; write a CMD that begins with a dash as ./{}", .0.escape_debug(), .0.escape_debug())]
    LateOption(String),
    #[error("try does not wait; use: distrilock lock -w TIME NAME")]
    TryWaits,
    #[error("-c takes exactly one string and no CMD")]
    OneString,
}
