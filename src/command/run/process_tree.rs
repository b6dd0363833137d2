//! The descendants of this process, read from /proc. A process can leave its process group
//! (setpgid(2), setsid(2)), but not the descendants of a subreaper (PR_SET_CHILD_SUBREAPER of
//! prctl(2)): a process that loses its parent becomes the subreaper's child.

use std::collections::HashMap;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command::output;

/// A process as the kernel lists it.
struct ProcessEntry {
    parent: i32,
    group: i32,
    alive: bool,
}

/// Reads every process (proc_pid_stat(5)), without those that end meanwhile.
fn processes() -> HashMap<i32, ProcessEntry> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|pid| Some((pid, parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Parses the state, the parent and the group. They follow the name, which can contain anything but
/// ends at the last parenthesis.
fn parse(stat: &str) -> Option<ProcessEntry> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(ProcessEntry { parent, group, alive: !matches!(state, "Z" | "X" | "x") })
}

/// A living descendant of this process.
struct Descendant {
    pid: Pid,
    group: Pid,
}

/// The living descendants. Zombies are left out, since they do nothing any more, but their children
/// are not.
fn descendants() -> Vec<Descendant> {
    let all = processes();
    let us = Pid::this().as_raw();
    let descends = |pid: &i32| {
        // The list is no snapshot: a reused number could close a circle, so the number of steps is
        // limited.
        let ancestors = std::iter::successors(all.get(pid), |process| all.get(&process.parent));
        ancestors.take(all.len()).any(|process| process.parent == us)
    };
    let found = all.iter().filter(|(pid, process)| process.alive && descends(pid));
    found.map(|(pid, process)| Descendant { pid: Pid::from_raw(*pid), group: Pid::from_raw(process.group) }).collect()
}

/// Sends a signal to a process group, and to every descendant outside of it.
pub(super) fn signal(group: Pid, signal: Signal) {
    // The group may have ended. A process that we may not signal is reported when it is to be
    // killed.
    let _ = killpg(group, signal);
    for process in descendants().into_iter().filter(|process| process.group != group) {
        let _ = kill(process.pid, signal);
    }
}

/// Kills every descendant, in as many attempts as it takes: processes may fork meanwhile, and
/// killed ones need a moment to go.
pub(super) struct KillAll {
    /// As for [`next_event`].
    expected: Pid,
    /// The processes that the last attempt was not permitted to kill.
    not_permitted: Vec<Pid>,
}

/// The result of an attempt to kill everything.
pub(super) enum KillAttempt {
    /// Descendants are left; try again in a moment.
    Again,
    /// Everything has been killed but these, which we may not kill, since they run as another user.
    Done { survivors: Vec<Pid> },
}

impl KillAll {
    pub(super) fn new(expected: Pid) -> Self {
        Self { expected, not_permitted: Vec::new() }
    }

    /// Sends SIGKILL to every descendant, and reaps the children among them.
    pub(super) fn attempt(&mut self) -> Result<KillAttempt, Errno> {
        let mut not_permitted: Vec<Pid> = descendants()
            .iter()
            .filter(|process| kill(process.pid, Signal::SIGKILL) == Err(Errno::EPERM))
            .map(|process| process.pid)
            .collect();
        not_permitted.sort_unstable();
        if reap(self.expected)? {
            return Ok(KillAttempt::Done { survivors: Vec::new() });
        }
        // After the same refusals twice, a further attempt would not help.
        if !not_permitted.is_empty() && not_permitted == self.not_permitted {
            return Ok(KillAttempt::Done { survivors: not_permitted });
        }
        self.not_permitted = not_permitted;
        Ok(KillAttempt::Again)
    }
}

/// Tells the user about processes that could not be killed.
pub(super) fn report_survivors(survivors: &[Pid]) {
    for pid in survivors {
        output::message(&format!("process {pid} goes on: only the user that it runs as may end it"));
    }
}

/// Reaps the children that have ended. Returns true if no children are left, and so no descendants
/// either.
pub(super) fn reap(expected: Pid) -> Result<bool, Errno> {
    loop {
        match next_event(expected)? {
            ChildEvent::NoChildren => return Ok(true),
            ChildEvent::Nothing => return Ok(false),
            ChildEvent::Ended(..) | ChildEvent::Stopped(..) => {}
        }
    }
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChildEvent {
    /// It ended. If a real-time signal ended it, how it ended is unknown.
    Ended(Pid, Option<Ending>),
    Stopped(Pid, Signal),
    /// There are children, but nothing has happened to them.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// How a process ended, or has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With this exit status.
    Status(u8),
    /// By this signal.
    Signal(Signal),
}

/// Asks for the next thing that happened to a child, and reaps the child if it has ended. nix does
/// not know real-time signals, and does not say which child one has ended: then it is `expected` if
/// that is gone.
pub(super) fn next_event(expected: Pid) -> Result<ChildEvent, Errno> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
        Ok(WaitStatus::Exited(pid, status)) => {
            let status = u8::try_from(status & 0xff).expect("it is one byte");
            Ok(ChildEvent::Ended(pid, Some(Ending::Status(status))))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) => Ok(ChildEvent::Ended(pid, Some(Ending::Signal(signal)))),
        Ok(WaitStatus::Stopped(pid, signal)) => Ok(ChildEvent::Stopped(pid, signal)),
        Ok(_) => Ok(ChildEvent::Nothing),
        Err(Errno::ECHILD) => Ok(ChildEvent::NoChildren),
        Err(Errno::EINVAL) if kill(expected, None) == Err(Errno::ESRCH) => Ok(ChildEvent::Ended(expected, None)),
        Err(Errno::EINVAL | Errno::EINTR) => Ok(ChildEvent::Ended(Pid::from_raw(0), None)),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process can give itself a name that looks like the fields after it.
    #[test]
    fn names_with_parentheses() {
        let process = parse("12 (a) Z 1 (b) S 7 12 12 0").unwrap();
        assert_eq!((process.parent, process.alive), (7, true));
        assert!(!parse("12 (x) Z 7 12").unwrap().alive);
        assert!(parse("12 (x").is_none());
    }
}
