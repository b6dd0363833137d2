//! The processes that descend from this one: read from /proc, since a process group can be left (setpgid(2), setsid(2)), while
//! nobody leaves the descendants of a subreaper (PR_SET_CHILD_SUBREAPER of prctl(2)): who loses its parent becomes our child.

use std::collections::HashMap;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process as the kernel lists it.
struct Listed {
    parent: i32,
    group: i32,
    alive: bool,
}

/// Every process (proc_pid_stat(5)); one that ends while we read is left out.
fn processes() -> HashMap<i32, Listed> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|pid| Some((pid, listed(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// The state, the parent and the group: the fields behind the name, which can hold anything but ends at the last parenthesis.
fn listed(stat: &str) -> Option<Listed> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Listed { parent, group, alive: !matches!(state, "Z" | "X" | "x") })
}

/// The descendants of this process that are alive, each with its process group; zombies do nothing any more, but their
/// children may.
fn descendants() -> Vec<(Pid, Pid)> {
    let all = processes();
    let us = Pid::this().as_raw();
    let descends = |pid: &i32| {
        // The list is no snapshot: a number that came anew could close a circle, so that the way up has an end.
        let up = std::iter::successors(all.get(pid), |process| all.get(&process.parent));
        up.take(all.len()).any(|process| process.parent == us)
    };
    let found = all.iter().filter(|(pid, process)| process.alive && descends(pid));
    found.map(|(pid, process)| (Pid::from_raw(*pid), Pid::from_raw(process.group))).collect()
}

/// Sends a signal to a process group, and to every descendant that is not in it.
pub(super) fn signal(group: Pid, signal: Signal) {
    // The group may have ended, and what must not be signalled is told about when it is to be killed.
    let _ = killpg(group, signal);
    for (pid, _) in descendants().into_iter().filter(|(_, its)| *its != group) {
        let _ = kill(pid, signal);
    }
}

/// Kills every descendant, and buries those that are ours to bury: some are still there when this returns, and it has to be
/// called again. Gives those that it must not kill, as a program that runs as another user, or None if nobody is left.
pub(super) fn kill_all(expected: Pid) -> Result<Option<Vec<Pid>>, Errno> {
    let found = descendants();
    let strangers =
        found.iter().filter(|(pid, _)| kill(*pid, Signal::SIGKILL) == Err(Errno::EPERM)).map(|(pid, _)| *pid).collect();
    Ok(if bury(expected)? { None } else { Some(strangers) })
}

/// Buries the children that have ended. True if there are no children any more: then there are no descendants, either.
pub(super) fn bury(expected: Pid) -> Result<bool, Errno> {
    loop {
        match news(expected)? {
            News::Childless => return Ok(true),
            News::Nothing => return Ok(false),
            News::Ended(..) | News::Stopped(..) => {}
        }
    }
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It ended; how is not known if a real-time signal ended it.
    Ended(Pid, Option<Ending>),
    Stopped(Pid, Signal),
    /// There are children, and nothing has happened to them.
    Nothing,
    /// There are no children.
    Childless,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Status(u8),
    Signal(Signal),
}

/// Asks for the next thing that happened to a child, and buries it if it has ended. `expected` is who is meant if the kernel
/// tells of a real-time signal, which nix does not know and leaves without a name.
pub(super) fn news(expected: Pid) -> Result<News, Errno> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
        Ok(WaitStatus::Exited(pid, status)) => {
            Ok(News::Ended(pid, Some(Ending::Status(u8::try_from(status & 0xff).expect("it is one byte")))))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) => Ok(News::Ended(pid, Some(Ending::Signal(signal)))),
        Ok(WaitStatus::Stopped(pid, signal)) => Ok(News::Stopped(pid, signal)),
        Ok(_) => Ok(News::Nothing),
        Err(Errno::ECHILD) => Ok(News::Childless),
        Err(Errno::EINVAL) if kill(expected, None) == Err(Errno::ESRCH) => Ok(News::Ended(expected, None)),
        Err(Errno::EINVAL | Errno::EINTR) => Ok(News::Ended(Pid::from_raw(0), None)),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process can give itself a name that looks like the fields behind it.
    #[test]
    fn names_with_parentheses() {
        let process = listed("12 (a) Z 1 (b) S 7 12 12 0").unwrap();
        assert_eq!((process.parent, process.alive), (7, true));
        assert!(!listed("12 (x) Z 7 12").unwrap().alive);
        assert!(listed("12 (x").is_none());
    }
}
