//! CMD as a job: how it is started, which signals reach it, and who has the terminal while it runs,
//! stops and ends.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, pipe2};

use super::exec_shim::ExecShim;
use super::process_tree;
use super::terminal::{Placement, Terminal};
use crate::command::environment::LockEnvironment;
use crate::command::exec::{OWN_PROGRAM, make_inheritable};
use crate::command::given_signals::GivenSignals;
use crate::command::signals::catch_child_ends;

/// The job that the user's shell knows: the launcher, and the process group that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserJob {
    pub(super) launcher: Pid,
    pub(super) group: Pid,
}

/// What to run, and how.
pub(super) struct JobSpec<'a> {
    /// CMD and its arguments.
    pub(super) words: &'a [OsString],
    /// The signals as `distrilock run` found them.
    pub(super) given_signals: GivenSignals,
    pub(super) environment: LockEnvironment,
    /// `None` leaves CMD our stdin.
    pub(super) stdin: Option<Stdio>,
}

/// CMD. It leads its own process group.
pub(super) struct Job {
    pub(super) pid: Pid,
    user_job: UserJob,
    terminal: Option<Terminal>,
    /// Where CMD is, or was when it stopped.
    placement: Placement,
    /// Whether CMD itself has been reaped. Until then, no other process has its number.
    reaped: bool,
}

impl Job {
    /// Starts CMD in its own process group. It gets the terminal at once if, as far as one can
    /// tell, nothing else uses it. In a pipeline, where other commands may want to read from the
    /// terminal, CMD gets it when it asks for it ([`Job::stopped`]).
    pub(super) fn start(user_job: UserJob, spec: JobSpec<'_>) -> io::Result<Self> {
        let terminal = Terminal::open();
        let user_job_has_it = terminal.as_ref().is_some_and(|terminal| terminal.belongs_to(user_job.group));
        let placement = match user_job_has_it && io::stdin().is_terminal() && io::stdout().is_terminal() {
            true => Placement::Foreground,
            false => Placement::Background,
        };
        // If SIGCHLD is ignored, CMD must be started with that, and yet must not end before this
        // process notices ends of children: so it starts on a word.
        let gate = match spec.given_signals.is_ignored(Signal::SIGCHLD) {
            true => Some(pipe2(OFlag::O_CLOEXEC)?),
            false => None,
        };
        if let Some((end, _)) = &gate {
            make_inheritable(end)?;
        }
        let shim = ExecShim {
            placement,
            given_signals: spec.given_signals,
            starts_at_end_of: gate.as_ref().map(|(end, _)| end.as_raw_fd()),
            words: spec.words,
        };
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0("distrilock").args(shim.arguments()).process_group(0);
        spec.environment.apply(&mut command);
        if let Some(stdin) = spec.stdin {
            command.stdin(stdin);
        }
        let pid = Pid::from_raw(i32::try_from(command.spawn()?.id()).expect("process numbers are below 2^22"));
        if gate.is_some() {
            catch_child_ends()?;
        }
        drop(gate);
        Ok(Self { pid, user_job, terminal, placement, reaped: false })
    }

    /// Sends a signal to all processes of CMD's group, as a terminal or `kill %1` does.
    pub(super) fn signal(&self, signal: Signal) {
        if self.reaped {
            process_tree::signal_group(self.pid, signal);
        } else {
            // The group may be empty.
            let _ = killpg(self.pid, signal);
        }
    }

    /// Whether CMD lives on though the signal would have ended it.
    pub(super) fn missed(&self, signal: Signal) -> bool {
        !self.reaped && process_tree::would_end(self.pid, signal)
    }

    /// Asks everything that CMD started to end, including stopped processes.
    pub(super) fn terminate(&self, signal: Signal) {
        for signal in [signal, Signal::SIGCONT] {
            self.signal(signal);
            process_tree::signal_outside(self.pid, signal);
        }
    }

    /// CMD has stopped. If it wants the terminal and the user's job has it, CMD gets it and
    /// continues; otherwise the user's job stops, too.
    pub(super) fn stopped(&mut self, signal: Signal) {
        if matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU) && self.terminal_of(self.user_job.group).is_some() {
            self.placement = Placement::Foreground;
            return self.resume();
        }
        if self.terminal_of(self.pid).is_some() {
            self.placement = Placement::Foreground;
            // Ctrl-Z reached CMD's group alone. Without us, it would have reached the group of the
            // user's job.
            self.give_back_terminal();
            let _ = killpg(self.user_job.group, Signal::SIGTSTP);
        } else {
            self.placement = Placement::Background;
            let _ = kill(self.user_job.launcher, Signal::SIGTSTP);
        }
    }

    /// The user's job continues, and so does CMD. CMD gets the terminal if it had it before and the
    /// user's job has it now.
    pub(super) fn resume(&self) {
        if self.placement == Placement::Foreground
            && let Some(terminal) = self.terminal_of(self.user_job.group)
        {
            terminal.give_to(self.pid);
        }
        self.signal(Signal::SIGCONT);
    }

    /// The terminal, if this process group has it.
    fn terminal_of(&self, group: Pid) -> Option<&Terminal> {
        self.terminal.as_ref().filter(|terminal| terminal.belongs_to(group))
    }

    fn give_back_terminal(&self) {
        if let Some(terminal) = self.terminal_of(self.pid) {
            terminal.give_to(self.user_job.group);
        }
    }

    /// CMD has ended, so the terminal is the user's again. If a key ended CMD, the signal also goes
    /// to the group in which CMD would have been without us, for example to the shell script that
    /// the key is meant to end. Returns whether it was a key.
    pub(super) fn ended(&mut self, by: Option<Signal>) -> bool {
        self.reaped = true;
        self.give_back_terminal();
        let by_key = self.placement == Placement::Foreground && matches!(by, Some(Signal::SIGINT | Signal::SIGQUIT));
        if by_key {
            let _ = killpg(self.user_job.group, by);
        }
        by_key
    }

    /// Closes the terminal, so that it can end while processes of CMD keep running.
    pub(super) fn forget_terminal(&mut self) {
        self.terminal = None;
    }
}
