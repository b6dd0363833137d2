//! The launcher: the process that the user started. It starts the guard, passes on the signals that
//! it gets, stops and continues when CMD does, and ends as CMD ended. It holds nothing: whatever
//! ends it, the guard notices.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

use super::guard;
use super::process_tree::{Ending, KillAll, KillAttempt, report_survivors};
use super::report::{GuardAfterwards, Report};
use crate::command::error::CommandError;
use crate::command::exec::{OWN_PROGRAM, make_inheritable};
use crate::command::signals::{ReceivedSignal, SignalReader, mask_to_text, raise_unblocked};
use crate::command::{output, status};

/// The pause between two attempts to kill everything.
const KILL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs the guard with these arguments of `distrilock run`, and ends as it reports.
pub(super) fn main(arguments: &[OsString]) -> Result<ExitCode, CommandError> {
    let mut launcher =
        Launcher::start(arguments).map_err(CommandError::system("start the process that holds the lock"))?;
    let report =
        launcher.wait_for_report().map_err(CommandError::system("attend to the process that holds the lock"))?;
    if report.guard == GuardAfterwards::Ends {
        // Nothing of ours is left when the user goes on.
        let _ = waitpid(launcher.guard, None);
    }
    Ok(match report.ending {
        Ending::Status(status) => ExitCode::from(status),
        Ending::Signal(signal) => die_by(signal),
    })
}

struct Launcher {
    guard: Pid,
    signals: SignalReader,
    reports: File,
}

impl Launcher {
    fn start(arguments: &[OsString]) -> io::Result<Self> {
        // If the guard is killed, its children become ours, and we end them.
        set_child_subreaper(true)?;
        let signals = SignalReader::block(&[Signal::SIGCHLD])?;
        let (reports, report_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let guard = start_guard(arguments, &signals, &report_writer)?;
        Ok(Self { guard, signals, reports: reports.into() })
    }

    /// Waits for the guard's report, and does meanwhile what signals ask for.
    fn wait_for_report(&mut self) -> io::Result<Report> {
        loop {
            let mut ready = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.reports.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [signalled, reported] = ready.map(|one| one.any().unwrap_or(false));
            if reported {
                let mut report = [0; Report::BYTES];
                return match self.reports.read_exact(&mut report) {
                    Ok(()) => Ok(Report::from_bytes(report)),
                    Err(_) => self.replace_killed_guard(),
                };
            }
            while signalled && let Some(received) = self.signals.next()? {
                self.handle(received)?;
            }
        }
    }

    fn handle(&self, received: ReceivedSignal) -> Result<(), Errno> {
        match received.signal {
            // The guard's end shows at the pipe.
            Signal::SIGCHLD => {}
            // CMD has stopped.
            Signal::SIGTSTP if received.sender == self.guard => self.stop()?,
            // The guard has signalled our process group, which includes us.
            _ if received.sender == self.guard => {}
            signal => self.pass_on(signal),
        }
        Ok(())
    }

    /// Stops until somebody continues us, and passes that on.
    fn stop(&self) -> Result<(), Errno> {
        raise_unblocked(Signal::SIGTSTP)?;
        let mut continued = false;
        while let Some(received) = self.signals.next()? {
            continued |= received.signal == Signal::SIGCONT;
            if received.sender != self.guard {
                self.pass_on(received.signal);
            }
        }
        // The kernel does not stop a process whose shell is gone (an orphaned process group,
        // setpgid(2)). Then nobody could continue CMD but us. If it stops again and again, once a
        // second is enough.
        if !continued {
            thread::sleep(Duration::from_secs(1));
            self.pass_on(Signal::SIGCONT);
        }
        Ok(())
    }

    fn pass_on(&self, signal: Signal) {
        // If the guard has ended, the pipe shows it.
        let _ = kill(self.guard, signal);
    }

    /// The guard ended without a report: somebody killed it, and the lock went with it. Everything
    /// that it guarded is now ours, and is ended.
    fn replace_killed_guard(&self) -> io::Result<Report> {
        output::message(
            "the process that held the lock was killed; ending CMD and everything it started, since nothing guards them any more",
        );
        let mut kill_all = KillAll::new(self.guard);
        loop {
            match kill_all.attempt()? {
                KillAttempt::Again => thread::sleep(KILL_INTERVAL),
                KillAttempt::Done { survivors } => {
                    report_survivors(&survivors);
                    return Ok(Report { ending: Ending::Status(status::LOST), guard: GuardAfterwards::Ends });
                }
            }
        }
    }
}

/// Starts the guard in its own process group, so that signals sent to ours do not reach it, SIGKILL
/// above all. The guard inherits the writing end of the pipe.
fn start_guard(arguments: &[OsString], signals: &SignalReader, report_writer: &OwnedFd) -> io::Result<Pid> {
    make_inheritable(report_writer)?;
    let child = Command::new(OWN_PROGRAM)
        .arg0("distrilock")
        .arg(guard::WORD)
        .arg(report_writer.as_raw_fd().to_string())
        .arg(mask_to_text(&signals.mask_before))
        .arg(Pid::this().to_string())
        .args(arguments)
        .process_group(0)
        .spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("process numbers are below 2^22")))
}

/// Ends this process by the signal that ended CMD, so that a shell sees what it would have seen of
/// CMD. Returns only if the signal is ignored.
fn die_by(signal: Signal) -> ExitCode {
    // CMD has dumped its core if it should; a core of ours would say nothing.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = raise_unblocked(signal);
    let number = u8::try_from(signal as i32).expect("signals are below 32");
    ExitCode::from(status::SIGNALLED + number)
}
