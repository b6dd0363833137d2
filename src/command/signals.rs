//! Signals as values: they are blocked and read from a descriptor (signalfd(2)), so that no handler
//! is installed, and programs that are started later find every signal as the user left it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// The signals that are passed on to CMD.
const PASSED_ON: [Signal; 9] = [
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

/// A signal that arrived, and the process that sent it; 0 is the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceivedSignal {
    pub(super) signal: Signal,
    pub(super) sender: Pid,
}

/// The signals that this process reads from a descriptor.
pub(super) struct SignalReader {
    descriptor: SignalFd,
    /// The signals that were blocked before.
    pub(super) mask_before: SigSet,
}

impl SignalReader {
    /// Blocks the signals of [`PASSED_ON`] and these, and opens the descriptor. A signal that is
    /// ignored, as by nohup(1), stays ignored and is not read.
    pub(super) fn block(more: &[Signal]) -> Result<Self, Errno> {
        let ignored = ignored();
        let mut blocked = SigSet::empty();
        let passed = PASSED_ON.into_iter().filter(|signal| ignored & bit(*signal) == 0);
        passed.chain(more.iter().copied()).for_each(|signal| blocked.add(signal));
        let mask_before = SigSet::thread_get_mask()?;
        blocked.thread_block()?;
        let descriptor = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor, mask_before })
    }

    /// The next signal that has arrived, if there is one.
    pub(super) fn next(&self) -> Result<Option<ReceivedSignal>, Errno> {
        let Some(info) = self.descriptor.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
        let sender = i32::try_from(info.ssi_pid).map_err(|_| Errno::EINVAL)?;
        Ok(Some(ReceivedSignal { signal: number.try_into()?, sender: Pid::from_raw(sender) }))
    }
}

impl AsFd for SignalReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for SignalReader {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_fd().as_raw_fd()
    }
}

/// Lets a blocked signal have its effect on this process, which may be to stop or to end it, and
/// blocks it again afterwards.
pub(super) fn raise_unblocked(signal: Signal) -> Result<(), Errno> {
    let mut one = SigSet::empty();
    one.add(signal);
    raise(signal)?;
    one.thread_unblock()?;
    one.thread_block()
}

/// Whether a signal was ignored when this process started.
pub(super) fn is_ignored(signal: Signal) -> bool {
    ignored() & bit(signal) != 0
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

/// The signals that were ignored when this process started, as bits (`SigIgn` of
/// proc_pid_status(5)).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// A set of signals as text, for the command line of the next process.
pub(super) fn mask_to_text(set: &SigSet) -> String {
    format!("{:x}", Signal::iterator().filter(|signal| set.contains(*signal)).map(bit).sum::<u64>())
}

/// Parses what [`mask_to_text`] wrote.
pub(super) fn mask_from_text(text: &str) -> Option<SigSet> {
    let bits = u64::from_str_radix(text, 16).ok()?;
    let mut set = SigSet::empty();
    Signal::iterator().filter(|signal| bits & bit(*signal) != 0).for_each(|signal| set.add(signal));
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mask survives the command line unchanged.
    #[test]
    fn masks_as_text() {
        let mut set = SigSet::empty();
        assert_eq!(mask_to_text(&set), "0");
        for signal in [Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGSYS] {
            set.add(signal);
        }
        let read = mask_from_text(&mask_to_text(&set)).unwrap();
        assert!(Signal::iterator().all(|signal| read.contains(signal) == set.contains(signal)));
        assert!(mask_from_text("x").is_none());
    }
}
