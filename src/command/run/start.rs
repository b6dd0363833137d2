//! The last step before CMD: a process of our own, in CMD's place, that does to itself what std::process::Command does not do
//! for its child without unsafe code, and then becomes CMD by execve(2).

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpgrp, getppid};

use super::signals;
use super::terminal::Terminal;
use crate::command::{say, status};

/// The word that makes a process of our program this one. It is nothing that a user types.
pub(in crate::command) const WORD: &str = "run:start";

/// The command line of this step.
pub(super) struct Start<'a> {
    /// Whether CMD's process group takes the terminal.
    pub(super) foreground: bool,
    /// The signals that were blocked when `distrilock run` began.
    pub(super) mask: &'a SigSet,
    /// CMD and its arguments.
    pub(super) command: &'a [OsString],
}

impl Start<'_> {
    /// The arguments behind the program's name.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let terminal = if self.foreground { "foreground" } else { "background" };
        let mut arguments: Vec<OsString> = [WORD, terminal].map(OsString::from).to_vec();
        arguments.push(signals::to_text(self.mask).into());
        arguments.push(Pid::this().to_string().into());
        arguments.extend_from_slice(self.command);
        arguments
    }
}

/// Becomes CMD. Returns only if that fails, with the exit status.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let [terminal, mask, guard, program, rest @ ..] = arguments else {
        say::error("this command line is not one that people write");
        return status::USAGE;
    };
    // CMD must not outlive the guard, which is who knows whether the lock is held.
    if set_pdeathsig(Signal::SIGKILL).is_err() || getppid().to_string().as_str() != guard.as_os_str() {
        return status::SYSTEM;
    }
    if terminal == "foreground"
        && let Some(terminal) = Terminal::open()
    {
        terminal.give_to(getpgrp());
    }
    let mask = mask.to_str().and_then(signals::of_text).unwrap_or_else(SigSet::empty);
    // It cannot fail: the set is a valid one (pthread_sigmask(3)).
    let _ = mask.thread_set_mask();
    not_run(program, &Command::new(program).args(rest).exec())
}

/// Says why CMD does not run.
pub(in crate::command) fn not_run(program: &OsStr, error: &std::io::Error) -> u8 {
    let remedy = match error.kind() {
        std::io::ErrorKind::NotFound => "is it installed, and is its folder in PATH?",
        std::io::ErrorKind::PermissionDenied => "it has to be a file that you may execute (chmod +x)",
        _ => "a script begins with #! and its interpreter",
    };
    say::error(&format!("cannot run {}: {error}; {remedy}", say::shown(&program.to_string_lossy())));
    status::NOT_RUN
}
