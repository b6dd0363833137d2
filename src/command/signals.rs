//! Signals as values: they are blocked and read from a descriptor (signalfd(2)), so that no handler
//! is installed, and programs that are started later find every signal as the user left it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::given_signals::GivenSignals;

/// What `si_code` says of a signal that no process sent (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

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

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceivedSignal {
    pub(super) signal: Signal,
    /// The process that sent it; 0 is the kernel, or a process outside of this PID namespace.
    pub(super) sender: Pid,
    /// Whether the kernel sent it on its own account, as for a key at the terminal.
    pub(super) by_kernel: bool,
}

/// The signals that this process reads from a descriptor.
pub(super) struct SignalReader {
    descriptor: SignalFd,
}

impl SignalReader {
    /// Blocks the signals of [`PASSED_ON`] and these, and opens the descriptor. A signal that is
    /// ignored, as by nohup(1), stays ignored and is not read.
    pub(super) fn block(more: &[Signal]) -> Result<Self, Errno> {
        let given = GivenSignals::of_this_process();
        let mut blocked = SigSet::empty();
        let passed = PASSED_ON.into_iter().filter(|signal| !given.is_ignored(*signal));
        passed.chain(more.iter().copied()).for_each(|signal| blocked.add(signal));
        blocked.thread_block()?;
        let descriptor = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor })
    }

    /// The next signal that has arrived, if there is one.
    pub(super) fn next(&self) -> Result<Option<ReceivedSignal>, Errno> {
        let Some(info) = self.descriptor.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
        let sender = i32::try_from(info.ssi_pid).map_err(|_| Errno::EINVAL)?;
        let by_kernel = info.ssi_code == SI_KERNEL;
        Ok(Some(ReceivedSignal { signal: number.try_into()?, sender: Pid::from_raw(sender), by_kernel }))
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

/// Makes this process notice its children's ends if it was started with SIGCHLD ignored: then there
/// would be no signal, and no exit status (wait(2)). A program that it becomes or starts afterwards
/// finds SIGCHLD at its default. Call this inside a runtime.
pub(super) fn catch_child_ends() -> io::Result<()> {
    // The handler stays when the stream is gone, and stays unused while the signal is blocked.
    signal(SignalKind::child()).map(drop)
}
