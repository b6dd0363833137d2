//! The guard's side of what joins it to the launcher: the signals that the launcher passes on, its
//! death, and the report at the end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, getppid};
use tokio::io::unix::AsyncFd;

use super::children::Ending;
use super::job::UserJob;
use super::passing_on::Source;
use super::report::{GuardAfterwards, Report};
use crate::command::exec::take_inherited;
use crate::command::signals::{ReceivedSignal, SignalReader};
use crate::readiness::watched;

/// The signal that the kernel sends when the launcher has died. Nothing else uses it here.
pub(super) const LAUNCHER_DIED: Signal = Signal::SIGURG;

/// See the module.
pub(super) struct LauncherLink {
    signals: AsyncFd<SignalReader>,
    user_job: UserJob,
    /// Where the launcher waits for the report, until it has it.
    reports: Option<File>,
}

impl LauncherLink {
    /// Sets the link up. `launcher` is the process that has to be our parent, and `report_writer`
    /// the inherited end of its pipe.
    ///
    /// # Errors
    /// If a system call fails, or if the launcher is already dead.
    pub(super) fn open(launcher: Pid, report_writer: RawFd) -> io::Result<Self> {
        // SIGTTOU would stop us when we give the terminal away from the background (tcsetpgrp(3)).
        let signals = SignalReader::block(&[Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU, LAUNCHER_DIED])?;
        set_pdeathsig(LAUNCHER_DIED)?;
        if getppid() != launcher {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let reports = take_inherited(report_writer, File::options().write(true))?;
        let user_job = UserJob { launcher, group: getpgid(Some(launcher)).unwrap_or(launcher) };
        Ok(Self { signals: watched(signals)?, user_job, reports: Some(reports) })
    }

    pub(super) fn user_job(&self) -> UserJob {
        self.user_job
    }

    /// Waits for the next signal.
    ///
    /// # Cancel safety
    /// No signal is taken unless it is returned.
    pub(super) async fn next_signal(&self) -> io::Result<ReceivedSignal> {
        loop {
            let mut ready = self.signals.readable().await?;
            match self.signals.get_ref().next()? {
                Some(received) => return Ok(received),
                None => ready.clear_ready(),
            }
        }
    }

    /// Who sent this signal.
    pub(super) fn source_of(&self, received: ReceivedSignal) -> Source {
        if received.sender == self.user_job.launcher { Source::Launcher } else { Source::Elsewhere }
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
