//! The last step before CMD: a process of our own that does to itself what std::process::Command
//! cannot do for its child without unsafe code, and then becomes CMD by execve(2).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpgrp, getppid};

use super::terminal::{Placement, Terminal};
use crate::command::exec::report_not_run;
use crate::command::signals::{mask_from_text, mask_to_text};
use crate::command::{output, status};

/// The first argument that makes a process of our program an exec shim. Users do not type it.
pub(in crate::command) const WORD: &str = "run:start";

const FOREGROUND: &str = "foreground";
const BACKGROUND: &str = "background";

/// What an exec shim is told.
pub(super) struct ExecShim<'a> {
    /// Whether CMD's process group takes the terminal.
    pub(super) placement: Placement,
    /// The signals that were blocked when `distrilock run` started.
    pub(super) mask: &'a SigSet,
    /// CMD and its arguments.
    pub(super) words: &'a [OsString],
}

impl ExecShim<'_> {
    /// The arguments that follow the program's name.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let placement = match self.placement {
            Placement::Foreground => FOREGROUND,
            Placement::Background => BACKGROUND,
        };
        let mut arguments: Vec<OsString> = [WORD, placement].map(OsString::from).to_vec();
        arguments.push(mask_to_text(self.mask).into());
        arguments.push(Pid::this().to_string().into());
        arguments.extend_from_slice(self.words);
        arguments
    }
}

/// Becomes CMD. Returns only if that fails, with the exit status.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let [placement, mask, guard, program, rest @ ..] = arguments else {
        output::message("this command line is internal to distrilock run, and not for people");
        return status::USAGE;
    };
    // CMD must not outlive the guard, which alone knows whether the lock is held.
    if set_pdeathsig(Signal::SIGKILL).is_err() || getppid().to_string().as_str() != guard.as_os_str() {
        return status::SYSTEM;
    }
    if placement == FOREGROUND
        && let Some(terminal) = Terminal::open()
    {
        terminal.give_to(getpgrp());
    }
    let mask = mask.to_str().and_then(mask_from_text).unwrap_or_else(SigSet::empty);
    // This cannot fail, since the set is valid (pthread_sigmask(3)).
    let _ = mask.thread_set_mask();
    report_not_run(program, &Command::new(program).args(rest).exec())
}
