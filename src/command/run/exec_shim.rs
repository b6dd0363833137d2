//! The last step before CMD: a process of our own that does to itself what std::process::Command
//! cannot do for its child without unsafe code, and then becomes CMD by execve(2).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgrp, getppid};

use super::terminal::{Placement, Terminal};
use crate::command::exec::{become_program, report_not_run, take_inherited};
use crate::command::given_signals::GivenSignals;
use crate::command::{output, status};

/// The first argument that makes a process of our program an exec shim. Users do not type it.
pub(in crate::command) const WORD: &str = "run:start";

const FOREGROUND: &str = "foreground";
const BACKGROUND: &str = "background";
const AT_ONCE: &str = "at-once";

/// What an exec shim is told.
pub(super) struct ExecShim<'a> {
    /// Whether CMD's process group takes the terminal.
    pub(super) placement: Placement,
    /// The signals as `distrilock run` found them.
    pub(super) given_signals: GivenSignals,
    /// An inherited end of a pipe: CMD starts when the other end is closed.
    pub(super) starts_at_end_of: Option<RawFd>,
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
        arguments.push(self.given_signals.to_text().into());
        arguments.push(self.starts_at_end_of.map_or_else(|| AT_ONCE.to_owned(), |pipe| pipe.to_string()).into());
        arguments.push(Pid::this().to_string().into());
        arguments.extend_from_slice(self.words);
        arguments
    }
}

/// Becomes CMD. Returns only if that fails, with the exit status.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let [placement, given_signals, starts, guard, program, rest @ ..] = arguments else { return not_for_people() };
    let Some(given_signals) = given_signals.to_str().and_then(GivenSignals::from_text) else { return not_for_people() };
    // CMD must not outlive the guard, which alone knows whether the lock is held.
    if set_pdeathsig(Signal::SIGKILL).is_err() || getppid().to_string().as_str() != guard.as_os_str() {
        return status::SYSTEM;
    }
    if placement == FOREGROUND
        && let Some(terminal) = Terminal::open()
    {
        terminal.give_to(getpgrp());
    }
    if starts != AT_ONCE && wait_for_end_of(starts.to_str().and_then(|pipe| pipe.parse().ok())).is_err() {
        return status::SYSTEM;
    }
    report_not_run(program, &become_program(Command::new(program).args(rest), given_signals))
}

fn not_for_people() -> u8 {
    output::message("this command line is internal to distrilock run, and not for people");
    status::USAGE
}

/// Waits until nobody can write to this pipe any more.
fn wait_for_end_of(pipe: Option<RawFd>) -> io::Result<()> {
    let mut pipe = take_inherited(pipe.ok_or(io::ErrorKind::InvalidInput)?, File::options().read(true))?;
    pipe.read_to_end(&mut Vec::new()).map(drop)
}
