//! Signals for the descendants of this process. A process can leave its process group (setpgid(2),
//! setsid(2)), but not the descendants of a subreaper (PR_SET_CHILD_SUBREAPER of prctl(2)): a
//! process that loses its parent becomes the subreaper's child.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use super::children;
use super::process_list::{Descendant, Disposition, descendants, has_ended};
use crate::command::output;

/// Sends a signal to every descendant that is not in this process group. One that we may not signal
/// is reported when it is to be killed.
pub(super) fn signal_outside(group: Pid, signal: Signal) {
    for process in descendants().unwrap_or_default() {
        if !is_in(&process, group) {
            let _ = process.signal(signal);
        }
    }
}

/// Sends a signal to the descendants in this process group. If no process is left in the group, the
/// kernel may use its number again; killpg(2) would reach strangers then.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    for process in descendants().unwrap_or_default() {
        if is_in(&process, group) {
            let _ = process.signal(signal);
        }
    }
}

fn is_in(process: &Descendant, group: Pid) -> bool {
    getpgid(Some(process.pid)) == Ok(group)
}

/// Whether this descendant lives on though the signal would have ended it, so that it cannot have
/// got it.
pub(super) fn would_end(pid: Pid, signal: Signal) -> bool {
    let found = descendants().unwrap_or_default().into_iter().find(|process| process.pid == pid);
    found.is_some_and(|process| process.disposition(signal) == Some(Disposition::Default))
}

/// Kills every descendant, in as many attempts as it takes: processes may fork meanwhile, and
/// killed ones need a moment to go. It ends with those left that cannot be killed.
#[derive(Default)]
pub(super) struct KillAll {
    attempts: u32,
    /// The attempts in a row in which /proc showed nothing that could be killed.
    fruitless: u32,
    searches: u32,
    /// The children that /proc does not show, and that were killed.
    hidden: Vec<Pid>,
}

/// The result of an attempt to kill everything.
pub(super) enum KillAttempt {
    /// Descendants are left; try again after this time.
    Again(Duration),
    /// Everything has been killed but these.
    Done { survivors: Vec<Pid> },
}

/// The pause between two attempts, at first and later.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

/// The attempts with the short pause: a fifth of a second.
const SHORT_PAUSES: u32 = 100;

/// After these attempts, some ten seconds, the user learns what we wait for.
const ATTEMPTS_SILENT: u32 = 300;

/// A child that has just been killed, or has just ended, is reaped within these attempts.
const FRUITLESS_MAX: u32 = 3;

/// How often children that /proc does not show are looked for. Each search goes one generation
/// down, since the children of the killed become ours.
const SEARCHES_MAX: u32 = 32;

impl KillAll {
    /// Sends SIGKILL to every descendant, and reaps the children among them.
    pub(super) fn attempt(&mut self) -> Result<KillAttempt, Errno> {
        self.attempts += 1;
        let (mut killed, mut refused) = (Vec::new(), Vec::new());
        for process in descendants().unwrap_or_default() {
            match process.signal(Signal::SIGKILL) {
                Ok(()) => killed.push(process.pid),
                Err(Errno::ESRCH) => {}
                Err(_) => refused.push(process.pid),
            }
        }
        if children::reap()? {
            return Ok(KillAttempt::Done { survivors: Vec::new() });
        }
        self.hidden.retain(|pid| children::is_living_child(*pid));
        killed.extend_from_slice(&self.hidden);
        if !killed.is_empty() {
            self.fruitless = 0;
            return Ok(self.again(&killed));
        }
        self.fruitless += 1;
        if self.fruitless < FRUITLESS_MAX {
            return Ok(self.again(&killed));
        }
        // /proc shows nothing that we may kill, and yet there are children. It hides them, or it
        // cannot be read, or they are those that we may not kill.
        if refused.is_empty() && self.searches < SEARCHES_MAX {
            self.searches += 1;
            for child in children::all_living().into_iter().filter(|pid| !has_ended(*pid)) {
                match kill(child, Signal::SIGKILL) {
                    Ok(()) => self.hidden.push(child),
                    Err(_) => refused.push(child),
                }
            }
            if !self.hidden.is_empty() {
                return Ok(self.again(&[]));
            }
        }
        if refused.is_empty() {
            refused = children::all_living().into_iter().filter(|pid| !has_ended(*pid)).collect();
        }
        refused.sort_unstable();
        Ok(KillAttempt::Done { survivors: refused })
    }

    fn again(&self, killed: &[Pid]) -> KillAttempt {
        if self.attempts == ATTEMPTS_SILENT && !killed.is_empty() {
            let pids: Vec<String> = killed.iter().map(ToString::to_string).collect();
            output::message(&format!(
                "the lock is kept until the kernel has ended what was killed (state D of ps waits for storage): process {}",
                pids.join(", ")
            ));
        }
        KillAttempt::Again(PAUSES[usize::from(self.attempts > SHORT_PAUSES)])
    }
}

/// Tells the user about processes that could not be killed.
pub(super) fn report_survivors(survivors: &[Pid]) {
    for pid in survivors {
        output::message(&format!("process {pid} keeps running: only the user that it runs as may end it"));
    }
}
