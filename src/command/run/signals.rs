//! Signals as values: they are blocked, and read from a descriptor (signalfd(2)), so that no handler is installed, and what
//! is started later finds every signal as the user left it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// What is passed on to CMD.
pub(super) const PASSED_ON: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// A signal that came, and the process that sent it; 0 if it was the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signalled {
    pub(super) signal: Signal,
    pub(super) sender: Pid,
}

/// The signals that this process takes from a descriptor.
pub(super) struct Signals {
    descriptor: SignalFd,
    /// What was blocked before.
    pub(super) before: SigSet,
}

impl Signals {
    /// Blocks the signals of [`PASSED_ON`] and these, and opens the descriptor. A signal that is ignored, as by nohup(1),
    /// stays so: it is not taken.
    pub(super) fn take(more: &[Signal]) -> Result<Self, Errno> {
        let ignored = ignored();
        let mut taken = SigSet::empty();
        let passed = PASSED_ON.into_iter().filter(|signal| ignored & bit(*signal) == 0);
        passed.chain(more.iter().copied()).for_each(|signal| taken.add(signal));
        let before = SigSet::thread_get_mask()?;
        taken.thread_block()?;
        let descriptor = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// The next signal that has come, if one has.
    pub(super) fn next(&self) -> Result<Option<Signalled>, Errno> {
        let Some(info) = self.descriptor.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
        let sender = i32::try_from(info.ssi_pid).map_err(|_| Errno::EINVAL)?;
        Ok(Some(Signalled { signal: number.try_into()?, sender: Pid::from_raw(sender) }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_fd().as_raw_fd()
    }
}

/// Does to this process what the signal does to one that knows nothing of it, and takes it as before once that is over.
pub(super) fn undergo(signal: Signal) -> Result<(), Errno> {
    let mut one = SigSet::empty();
    one.add(signal);
    raise(signal)?;
    one.thread_unblock()?;
    one.thread_block()
}

/// Whether a signal was ignored when this process began.
pub(in crate::command) fn is_ignored(signal: Signal) -> bool {
    ignored() & bit(signal) != 0
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

/// The signals that were ignored when this process began, as bits (`SigIgn` of proc_pid_status(5)).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// A set of signals as text, for the command line of the next process.
pub(super) fn to_text(set: &SigSet) -> String {
    format!("{:x}", Signal::iterator().filter(|signal| set.contains(*signal)).map(bit).sum::<u64>())
}

/// What [`to_text`] wrote.
pub(super) fn of_text(text: &str) -> Option<SigSet> {
    let bits = u64::from_str_radix(text, 16).ok()?;
    let mut set = SigSet::empty();
    Signal::iterator().filter(|signal| bits & bit(*signal) != 0).for_each(|signal| set.add(signal));
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mask comes through a command line as it was.
    #[test]
    fn masks_as_text() {
        let mut set = SigSet::empty();
        assert_eq!(to_text(&set), "0");
        for signal in [Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGSYS] {
            set.add(signal);
        }
        let read = of_text(&to_text(&set)).unwrap();
        assert!(Signal::iterator().all(|signal| read.contains(signal) == set.contains(signal)));
        assert!(of_text("x").is_none());
    }
}
