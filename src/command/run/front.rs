//! The process that the user started. It starts the guard, passes on the signals that it gets, stops and goes on when CMD does,
//! and ends as CMD ended. It holds nothing: whatever ends it, the guard sees that.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
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
use super::report::{End, Report};
use super::signals::{self, Signalled, Signals};
use super::tree;
use crate::command::trouble::Trouble;
use crate::command::{OWN_PROGRAM, inherit, say, status};

/// Between two looks at processes that were killed and are not gone yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Runs the guard with these arguments of `distrilock run`, and ends as it says.
pub(super) fn main(arguments: &[OsString]) -> Result<ExitCode, Trouble> {
    let mut front = Front::start(arguments).map_err(Trouble::system("start the guard of CMD"))?;
    let report = front.attend().map_err(Trouble::system("attend to the guard of CMD"))?;
    if !report.guard_stays {
        // Nothing of ours is left when the user goes on.
        let _ = waitpid(front.guard, None);
    }
    Ok(match report.end {
        End::Status(status) => ExitCode::from(status),
        End::Signal(signal) => die_of(signal),
    })
}

struct Front {
    guard: Pid,
    signals: Signals,
    reports: File,
}

impl Front {
    fn start(arguments: &[OsString]) -> std::io::Result<Self> {
        // If the guard is killed, its children become ours, and we end them.
        set_child_subreaper(true)?;
        let signals = Signals::take(&[Signal::SIGCHLD])?;
        let (reports, reporter) = pipe2(OFlag::O_CLOEXEC)?;
        let guard = start_guard(arguments, &signals, &reporter)?;
        Ok(Self { guard, signals, reports: reports.into() })
    }

    /// Waits for the guard's report, and does meanwhile what signals ask for.
    fn attend(&mut self) -> std::io::Result<Report> {
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
                    Ok(()) => Ok(Report::of_bytes(report)),
                    Err(_) => self.bury_guard(),
                };
            }
            while signalled && let Some(came) = self.signals.next()? {
                self.pass_on(came)?;
            }
        }
    }

    fn pass_on(&self, came: Signalled) -> Result<(), Errno> {
        match came.signal {
            // Its end shows at the pipe.
            Signal::SIGCHLD => {}
            // CMD has stopped.
            Signal::SIGTSTP if came.sender == self.guard => self.stop()?,
            // The guard's signal to our process group, in which we are as well.
            _ if came.sender == self.guard => {}
            signal => self.tell_guard(signal),
        }
        Ok(())
    }

    /// Stops until somebody continues us, which the guard is told.
    fn stop(&self) -> Result<(), Errno> {
        signals::undergo(Signal::SIGTSTP)?;
        let mut continued = false;
        while let Some(came) = self.signals.next()? {
            continued |= came.signal == Signal::SIGCONT;
            if came.sender != self.guard {
                self.tell_guard(came.signal);
            }
        }
        // The kernel does not stop a process whose shell has gone (an orphaned process group, setpgid(2)). Then nobody could
        // continue CMD but us; if it stops again, once a second is enough.
        if !continued {
            thread::sleep(Duration::from_secs(1));
            self.tell_guard(Signal::SIGCONT);
        }
        Ok(())
    }

    fn tell_guard(&self, signal: Signal) {
        // That it has ended is seen at the pipe.
        let _ = kill(self.guard, signal);
    }

    /// The guard ended without a report: somebody killed it, and the lock went with it. What it guarded has become ours.
    fn bury_guard(&self) -> std::io::Result<Report> {
        say::error(
            "the process that held the lock was killed; what CMD started is ended, since nothing guards it any more",
        );
        let mut told = Vec::new();
        while let Some(strangers) = tree::kill_all(self.guard)? {
            if !strangers.is_empty() && told == strangers {
                break;
            }
            thread::sleep(LOOK_AGAIN);
            told = strangers;
        }
        told.iter().for_each(|stranger| {
            say::error(&format!("process {stranger} goes on: only the user it runs as may end it"))
        });
        Ok(Report { end: End::Status(status::LOST), guard_stays: false })
    }
}

/// Starts the guard in a process group of its own, so that what is sent to ours, SIGKILL above all, does not reach it. It
/// inherits the writing end of the pipe.
fn start_guard(arguments: &[OsString], signals: &Signals, reporter: &OwnedFd) -> std::io::Result<Pid> {
    inherit::leave_open(reporter)?;
    let child = Command::new(OWN_PROGRAM)
        .arg0("distrilock")
        .arg(guard::WORD)
        .arg(reporter.as_raw_fd().to_string())
        .arg(signals::to_text(&signals.before))
        .arg(Pid::this().to_string())
        .args(arguments)
        .process_group(0)
        .spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("process numbers are below 2^22")))
}

/// Ends this process by a signal, as CMD was, so that a shell sees what it would have seen of CMD. Returns only if the
/// signal is ignored.
fn die_of(signal: Signal) -> ExitCode {
    // CMD has left its core if there is to be one; ours says nothing.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = signals::undergo(signal);
    let number = u8::try_from(signal as i32).expect("signals are below 32");
    ExitCode::from(status::SIGNALLED + number)
}
