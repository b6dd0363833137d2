//! What signals did when this process started: which were ignored, and which were blocked. CMD gets
//! them back like that.
//!
//! The standard library ignores SIGPIPE before `main`, and nobody can tell afterwards whether the
//! caller had ignored it. So the ignored signals are read before that. Code runs that early if the
//! program's .init_array section lists it; a crate whose whole purpose is to collect values there,
//! `inventory`, calls [`BeforeMain::registry`].

use std::fs;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that were ignored when this process started, as bits (`SigIgn` of
/// proc_pid_status(5)); none if /proc does not show them.
static IGNORED: OnceLock<u64> = OnceLock::new();

/// The signals that were blocked when [`begin`] was called.
static BLOCKED: OnceLock<SigSet> = OnceLock::new();

struct BeforeMain;

impl inventory::Collect for BeforeMain {
    fn registry() -> &'static inventory::Registry {
        static REGISTRY: inventory::Registry = inventory::Registry::new();
        IGNORED.get_or_init(read_ignored);
        &REGISTRY
    }
}

inventory::submit! { BeforeMain }

fn read_ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// Remembers the mask, and sets what every verb relies on: SIGXFSZ does not kill, so that a write
/// beyond the limit on file sizes is an error (EFBIG of write(2)). Call this at the beginning of
/// `main`.
pub(super) fn begin() -> Result<(), Errno> {
    let blocked = SigSet::thread_get_mask()?;
    BLOCKED.get_or_init(|| blocked);
    let mut ours = SigSet::empty();
    ours.add(Signal::SIGXFSZ);
    ours.thread_block()
}

/// Signals as CMD has to find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenSignals {
    /// Those that are blocked, without real-time signals, which none of our processes blocks or
    /// unblocks.
    blocked: u64,
    ignored: u64,
}

impl GivenSignals {
    /// As this process found them.
    pub(super) fn of_this_process() -> Self {
        let blocked = BLOCKED.get().copied().unwrap_or_else(SigSet::empty);
        let blocked = Signal::iterator().filter(|signal| blocked.contains(*signal)).map(bit).sum();
        Self { blocked, ignored: *IGNORED.get_or_init(read_ignored) }
    }

    pub(super) fn is_ignored(self, signal: Signal) -> bool {
        self.ignored & bit(signal) != 0
    }

    /// Blocks and unblocks what was blocked and was not, for the program that this process becomes.
    pub(super) fn restore_blocked(self) -> Result<(), Errno> {
        discard_pending(Signal::SIGXFSZ)?;
        let mut mask = SigSet::thread_get_mask()?;
        for signal in Signal::iterator() {
            if self.blocked & bit(signal) == 0 { mask.remove(signal) } else { mask.add(signal) }
        }
        mask.thread_set_mask()
    }

    /// As text, for the command line of the next process.
    pub(super) fn to_text(self) -> String {
        format!("{:x},{:x}", self.blocked, self.ignored)
    }

    /// Parses what [`GivenSignals::to_text`] wrote.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let (blocked, ignored) = text.split_once(',')?;
        let bits = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { blocked: bits(blocked)?, ignored: bits(ignored)? })
    }
}

/// Forgets a blocked signal that has arrived, which was meant for us rather than for the program
/// that this process becomes.
fn discard_pending(signal: Signal) -> Result<(), Errno> {
    let mut one = SigSet::empty();
    one.add(signal);
    let descriptor = SignalFd::with_flags(&one, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    while descriptor.read_signal()?.is_some() {}
    Ok(())
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signals survive the command line unchanged.
    #[test]
    fn as_text() {
        let all = Signal::iterator().map(bit).sum();
        for (blocked, ignored) in [(0, 0), (bit(Signal::SIGHUP), bit(Signal::SIGPIPE)), (all, 0), (0, u64::MAX)] {
            let given = GivenSignals { blocked, ignored };
            assert_eq!(GivenSignals::from_text(&given.to_text()), Some(given));
        }
        assert_eq!(GivenSignals::from_text("1"), None);
        assert_eq!(GivenSignals::from_text("1,x"), None);
    }
}
