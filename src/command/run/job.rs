//! CMD as a job: how it is started, what reaches it, and who has the terminal while it runs, stops and ends.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;

use super::start::Start;
use super::terminal::Terminal;
use super::{VARIABLES, tree};
use crate::command::OWN_PROGRAM;
use crate::command::options::Run;

/// The process that the user's shell knows, and its process group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Front {
    pub(super) pid: Pid,
    pub(super) group: Pid,
}

/// CMD. Its process group has its own number.
pub(super) struct Job {
    pub(super) pid: Pid,
    front: Front,
    terminal: Option<Terminal>,
    /// Whether CMD has the terminal, or had it when it stopped.
    has_terminal: bool,
}

impl Job {
    /// Starts CMD in a process group of its own. It gets the terminal at once if it is alone with it, as far as one can tell: in
    /// a pipeline it gets it when it asks for it (`stopped`), since the others may want to read from it.
    pub(super) fn start(
        options: &Run,
        words: &[OsString],
        front: Front,
        mask: &SigSet,
        variables: &[(&'static str, String)],
    ) -> io::Result<Self> {
        let terminal = Terminal::open();
        let job_is_in_front = terminal.as_ref().is_some_and(|terminal| terminal.belongs_to(front.group));
        let foreground = job_is_in_front && io::stdin().is_terminal() && io::stdout().is_terminal();
        let start = Start { foreground, mask, command: words };
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0("distrilock").args(start.arguments()).process_group(0);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        if options.no_stdin {
            command.stdin(Stdio::null());
        }
        let pid = Pid::from_raw(i32::try_from(command.spawn()?.id()).expect("process numbers are below 2^22"));
        Ok(Self { pid, front, terminal, has_terminal: foreground })
    }

    /// Passes a signal on to all processes of CMD's group, as a terminal or `kill %1` does.
    pub(super) fn signal(&self, signal: Signal) {
        // Nobody may be left in it.
        let _ = killpg(self.pid, signal);
    }

    /// Asks everything that CMD started to end, what is stopped as well.
    pub(super) fn terminate(&self, signal: Signal) {
        tree::signal(self.pid, signal);
        tree::signal(self.pid, Signal::SIGCONT);
    }

    /// CMD has stopped. If it wants the terminal, and the user's job has it, it gets it; else the user's job stops, too.
    pub(super) fn stopped(&mut self, signal: Signal) {
        let belongs_to = |group| self.terminal.as_ref().is_some_and(|terminal| terminal.belongs_to(group));
        if matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU) && belongs_to(self.front.group) {
            self.has_terminal = true;
            return self.go_on();
        }
        self.has_terminal = belongs_to(self.pid);
        if self.has_terminal {
            // Ctrl-Z reached CMD's group alone. Without us, it would have reached this one.
            self.give_back_terminal();
            let _ = killpg(self.front.group, Signal::SIGTSTP);
        } else {
            let _ = kill(self.front.pid, Signal::SIGTSTP);
        }
    }

    /// The user's job goes on, and so does CMD, with the terminal if it had it and the job has it again.
    pub(super) fn go_on(&self) {
        if let Some(terminal) = &self.terminal
            && self.has_terminal
            && terminal.belongs_to(self.front.group)
        {
            terminal.give_to(self.pid);
        }
        self.signal(Signal::SIGCONT);
    }

    fn give_back_terminal(&self) {
        if let Some(terminal) = &self.terminal
            && terminal.belongs_to(self.pid)
        {
            terminal.give_to(self.front.group);
        }
    }

    /// CMD has ended: the terminal is the user's again. If a key ended it, that signal goes to the group in which CMD would have
    /// been without us, as to the shell script that the key is to end.
    pub(super) fn ended(&self, by: Option<Signal>) -> bool {
        self.give_back_terminal();
        let by_key = self.has_terminal && matches!(by, Some(Signal::SIGINT | Signal::SIGQUIT));
        if by_key {
            let _ = killpg(self.front.group, by);
        }
        by_key
    }
}
