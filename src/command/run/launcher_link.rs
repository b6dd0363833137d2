//! The guard's side of what joins it to the launcher: the signals that the launcher passes on, its
//! death, and the report at the end.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, getppid};
use tokio::io::unix::AsyncFd;

use super::children::Ending;
use super::job::UserJob;
use super::passing_on::{EchoTime, Source};
use super::report::{GuardAfterwards, Report};
use crate::command::exec::take_inherited;
use crate::command::signals::SignalReader;
use crate::readiness::watched;

/// The signal that the kernel sends when the launcher has died. Nothing else uses it here.
pub(super) const LAUNCHER_DIED: Signal = Signal::SIGURG;

/// The inherited ends of the launcher's pipes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipes {
    pub(super) report_writer: RawFd,
    pub(super) signal_reader: RawFd,
}

/// A signal that the guard has to attend to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArrivedSignal {
    pub(super) signal: Signal,
    pub(super) source: Source,
    pub(super) echo_time: EchoTime,
}

/// See the module.
pub(super) struct LauncherLink {
    signals: AsyncFd<SignalReader>,
    /// The signals that the launcher passes on.
    passed_on: AsyncFd<File>,
    /// Whether the launcher's end of that pipe is closed.
    passed_on_ended: Cell<bool>,
    user_job: UserJob,
    /// Where the launcher waits for the report, until it has it.
    reports: Option<File>,
}

impl LauncherLink {
    /// Sets the link up. `launcher` is the process that has to be our parent, and `pipes` are the
    /// inherited ends of its pipes.
    ///
    /// # Errors
    /// If a system call fails, or if the launcher is already dead.
    pub(super) fn open(launcher: Pid, pipes: Pipes) -> io::Result<Self> {
        // SIGTTOU would stop us when we give the terminal away from the background (tcsetpgrp(3)).
        let signals = SignalReader::block(&[Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU, LAUNCHER_DIED])?;
        set_pdeathsig(LAUNCHER_DIED)?;
        if getppid() != launcher {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let reports = take_inherited(pipes.report_writer, File::options().write(true))?;
        let nonblocking = OFlag::O_NONBLOCK.bits();
        let passed_on = take_inherited(pipes.signal_reader, File::options().read(true).custom_flags(nonblocking))?;
        let user_job = UserJob { launcher, group: getpgid(Some(launcher)).unwrap_or(launcher) };
        Ok(Self {
            signals: watched(signals)?,
            passed_on: watched(passed_on)?,
            passed_on_ended: Cell::new(false),
            user_job,
            reports: Some(reports),
        })
    }

    pub(super) fn user_job(&self) -> UserJob {
        self.user_job
    }

    /// Waits for the next signal.
    ///
    /// # Cancel safety
    /// No signal is taken unless it is returned.
    pub(super) async fn next_signal(&self) -> io::Result<ArrivedSignal> {
        loop {
            tokio::select! {
                biased;
                ready = self.signals.readable() => match self.signals.get_ref().next()? {
                    Some(received) => {
                        let echo_time = EchoTime::of(received);
                        return Ok(ArrivedSignal { signal: received.signal, source: Source::Elsewhere, echo_time });
                    }
                    None => ready?.clear_ready(),
                },
                ready = self.passed_on.readable(), if !self.passed_on_ended.get() => {
                    let mut byte = [0];
                    match self.passed_on.get_ref().read(&mut byte) {
                        // The launcher has ended; LAUNCHER_DIED reports it.
                        Ok(0) => self.passed_on_ended.set(true),
                        Ok(_) => {
                            let (signal, echo_time) = EchoTime::from_byte(byte[0]).ok_or(Errno::EINVAL)?;
                            return Ok(ArrivedSignal { signal, source: Source::Launcher, echo_time });
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready?.clear_ready(),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Whether the launcher died before it had the report. Once it has the report, it may go.
    pub(super) fn launcher_died(&self) -> bool {
        self.reports.is_some() && getppid() != self.user_job.launcher
    }

    /// Stops the user's job, as SIGTSTP would have done without us.
    pub(super) fn stop_launcher(&self) {
        let _ = kill(self.user_job.launcher, Signal::SIGTSTP);
    }

    /// Tells the launcher how to end. That ends the launcher, so everything else must be done
    /// before. Only the first report counts.
    pub(super) fn report(&mut self, ending: Ending, guard: GuardAfterwards) -> io::Result<()> {
        match self.reports.take() {
            Some(mut reports) => reports.write_all(&Report { ending, guard }.to_bytes()),
            None => Ok(()),
        }
    }
}
