//! The launcher: the process that the user started. It starts the guard, passes on the signals that
//! it gets, stops and continues when CMD does, and ends as CMD ended. It holds nothing: whatever
//! ends it, the guard notices.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
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
use nix::unistd::{Pid, pipe2};

use super::children::{ChildEvent, Ending};
use super::passing_on::EchoTime;
use super::process_tree::{KillAll, KillAttempt, report_survivors};
use super::report::{GuardAfterwards, Report};
use super::{children, guard, process_list};
use crate::command::error::CommandError;
use crate::command::exec::{OWN_PROGRAM, check_descriptors, make_inheritable};
use crate::command::given_signals::GivenSignals;
use crate::command::signals::{ReceivedSignal, SignalReader, raise_unblocked};
use crate::command::{output, status};

/// The descriptors that the guard needs while it starts CMD and looks through /proc, with some to
/// spare. It inherits those that this process has.
const RUN_DESCRIPTORS: usize = 20;

/// Runs the guard with these arguments of `distrilock run`, and ends as it reports.
pub(super) fn main(arguments: &[OsString]) -> Result<ExitCode, CommandError> {
    // What descends from CMD is found in /proc, and the next processes are started from there.
    if !process_list::is_usable() {
        return Err(CommandError::NoProc);
    }
    check_descriptors(RUN_DESCRIPTORS)?;
    let mut launcher =
        Launcher::start(arguments).map_err(CommandError::system("start the process that holds the lock"))?;
    let report =
        launcher.wait_for_report().map_err(CommandError::system("attend to the process that holds the lock"))?;
    if report.guard == GuardAfterwards::Ends {
        // None of our processes is left when the user continues.
        launcher.wait_for_guard();
    }
    Ok(match report.ending {
        Ending::Status(status) => ExitCode::from(status),
        Ending::Signal(signal) => die_by(signal),
    })
}

struct Launcher {
    guard: Pid,
    /// How the guard has ended, once it is reaped: its number may be another process's then.
    guard_reaped: Option<Ending>,
    signals: SignalReader,
    /// Where the guard reads the signals that are passed on, each as a byte. Through kill(2), one
    /// that the guard itself got at the same time would hide ours.
    passed_on: File,
    reports: File,
}

impl Launcher {
    fn start(arguments: &[OsString]) -> io::Result<Self> {
        // If the guard is killed, its children become ours, and we end them.
        set_child_subreaper(true)?;
        let signals = SignalReader::block(&[Signal::SIGCHLD])?;
        let (reports, report_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (signal_reader, passed_on) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let guard = start_guard(arguments, &report_writer, &signal_reader)?;
        Ok(Self { guard, guard_reaped: None, signals, passed_on: passed_on.into(), reports: reports.into() })
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
                    Err(_) => self.replace_guard(),
                };
            }
            while signalled && let Some(received) = self.signals.next()? {
                self.handle(received)?;
            }
        }
    }

    fn handle(&mut self, received: ReceivedSignal) -> Result<(), Errno> {
        match received.signal {
            // As process 1 of a container, this one inherits strangers.
            Signal::SIGCHLD => self.reap()?,
            // CMD has stopped.
            Signal::SIGTSTP if received.sender == self.guard => self.stop()?,
            // The guard has signalled our process group, which includes us.
            _ if received.sender == self.guard => {}
            _ => self.pass_on(received.signal, EchoTime::of(received)),
        }
        Ok(())
    }

    /// Reaps whatever has ended. The guard's end shows at the pipe.
    fn reap(&mut self) -> Result<(), Errno> {
        loop {
            match children::next_event()? {
                ChildEvent::Ended(pid, ending) if pid == self.guard => self.guard_reaped = Some(ending),
                ChildEvent::Ended(..) | ChildEvent::Stopped(..) => {}
                ChildEvent::Nothing | ChildEvent::NoChildren => return Ok(()),
            }
        }
    }

    /// Waits until the guard has ended. Returns `None` if nobody knows how.
    fn wait_for_guard(&mut self) -> Option<Ending> {
        if self.guard_reaped.is_none() {
            self.guard_reaped = children::wait_for(self.guard);
        }
        self.guard_reaped
    }

    /// Stops until somebody continues us, and passes that on.
    fn stop(&mut self) -> Result<(), Errno> {
        raise_unblocked(Signal::SIGTSTP)?;
        let mut continued = false;
        while let Some(received) = self.signals.next()? {
            continued |= received.signal == Signal::SIGCONT;
            if received.signal == Signal::SIGCHLD {
                self.reap()?;
            } else if received.sender != self.guard {
                self.pass_on(received.signal, EchoTime::of(received));
            }
        }
        // The kernel does not stop a process whose shell is gone (an orphaned process group,
        // setpgid(2)). Then nobody could continue CMD but us. If it stops again and again, once a
        // second is enough.
        if !continued {
            thread::sleep(Duration::from_secs(1));
            self.pass_on(Signal::SIGCONT, EchoTime::None);
        }
        Ok(())
    }

    fn pass_on(&self, signal: Signal, time: EchoTime) {
        // If the guard has ended, the other pipe shows it. Nobody sends so many signals that this
        // one is full.
        let _ = (&self.passed_on).write(&[time.to_byte(signal)]);
        // The guard itself may have been stopped.
        if signal == Signal::SIGCONT && self.guard_reaped.is_none() {
            let _ = kill(self.guard, signal);
        }
    }

    /// The guard ended without a report. Everything that it guarded is now ours, and is ended.
    fn replace_guard(&mut self) -> io::Result<Report> {
        let status = match self.wait_for_guard() {
            // It could not begin, and has said why.
            Some(Ending::Status(failure)) if failure != status::DONE => failure,
            _ => {
                output::message(
                    "the process that held the lock was killed; ending CMD and everything it started, since nothing guards them any more",
                );
                status::LOST
            }
        };
        let mut kill_all = KillAll::default();
        loop {
            match kill_all.attempt()? {
                KillAttempt::Again(pause) => thread::sleep(pause),
                KillAttempt::Done { survivors } => {
                    report_survivors(&survivors);
                    return Ok(Report { ending: Ending::Status(status), guard: GuardAfterwards::Ends });
                }
            }
        }
    }
}

/// Starts the guard in its own process group, so that signals sent to ours do not reach it, SIGKILL
/// above all. The guard inherits its ends of the two pipes.
fn start_guard(arguments: &[OsString], report_writer: &OwnedFd, signal_reader: &OwnedFd) -> io::Result<Pid> {
    make_inheritable(report_writer)?;
    make_inheritable(signal_reader)?;
    let child = Command::new(OWN_PROGRAM)
        .arg0(guard::NAME)
        .arg(guard::WORD)
        .arg(report_writer.as_raw_fd().to_string())
        .arg(signal_reader.as_raw_fd().to_string())
        .arg(GivenSignals::of_this_process().to_text())
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
