//! The exit statuses, taken from sysexits(3) where it has one. docs/distrilock.md lists them for
//! users.

/// All is well. `run` exits with CMD's own status.
pub(super) const DONE: u8 = 0;

/// Others hold the lock, or the wait for it ran out: the same as flock(1), and `-E` changes it.
pub(super) const BUSY: u8 = 1;

/// The command line cannot be understood (EX_USAGE).
pub(super) const USAGE: u8 = 64;

/// The daemon refused the request, and would refuse it again (EX_DATAERR): a different number of
/// slots, a deadlock.
pub(super) const REFUSED: u8 = 65;

/// No daemon could be reached (EX_NOHOST).
pub(super) const UNREACHABLE: u8 = 68;

/// CMD could not be run, or journalctl, whose journal has the history (EX_UNAVAILABLE).
pub(super) const NOT_RUN: u8 = 69;

/// The system failed, here or in the daemon's lock directory (EX_OSERR).
pub(super) const SYSTEM: u8 = 71;

/// The lock was lost (EX_IOERR).
pub(super) const LOST: u8 = 74;

/// The server does not speak the protocol, or not this version of it (EX_PROTOCOL).
pub(super) const PROTOCOL: u8 = 76;

/// Denied, or over a limit of the daemon (EX_NOPERM).
pub(super) const DENIED: u8 = 77;

/// `--max-hold` ran out: the same as timeout(1).
pub(super) const TOO_LONG: u8 = 124;

/// A shell adds this to the number of the signal that ended a command.
pub(super) const SIGNALLED: u8 = 128;
