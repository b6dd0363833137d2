//! The processes that /proc lists. The /proc that this process sees may belong to a PID namespace
//! above its own, as in a sandbox that binds the host's: then processes have other numbers there
//! than here (pid_namespaces(7)). And it may hide other users' processes (`hidepid` of proc(5)).

use std::collections::HashMap;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{self, PidfdFlags};

/// No process has more ancestors than that.
const GENERATIONS_MAX: usize = 4096;

/// A process as /proc lists it.
struct Entry {
    parent: i32,
    /// Whether any thread of it lives.
    alive: bool,
    /// When it started. With its number, that is one process for good.
    started: u64,
}

/// How the numbers in /proc relate to ours.
struct Numbering {
    /// This process's number in /proc.
    us: i32,
    /// How many namespaces lie between the one of /proc and ours.
    depth: usize,
}

impl Numbering {
    /// `None` if /proc does not show this process: it is not mounted, or is another namespace's.
    fn read() -> Option<Self> {
        let us = fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()?;
        let depth = match namespace_numbers("self") {
            Some(numbers) => numbers.len().checked_sub(1)?,
            // Without that line, all that can be said is whether the two are the same.
            None if us == Pid::this().as_raw() => 0,
            None => return None,
        };
        Some(Self { us, depth })
    }

    /// The number here of a process with this number in /proc.
    fn here(&self, listed: i32) -> Option<Pid> {
        let number = match self.depth {
            0 => listed,
            depth => *namespace_numbers(&listed.to_string())?.get(depth)?,
        };
        Some(Pid::from_raw(number))
    }
}

/// A process's numbers in the namespace of /proc and in those below (`NSpid` of
/// proc_pid_status(5)).
fn namespace_numbers(process: &str) -> Option<Vec<i32>> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// Whether /proc can show what descends from this process.
pub(super) fn is_usable() -> bool {
    Numbering::read().is_some()
}

/// Whether /proc says that a process has ended. A debugger may keep it from being reaped.
pub(super) fn has_ended(pid: Pid) -> bool {
    let same_numbers = Numbering::read().is_some_and(|numbering| numbering.depth == 0);
    same_numbers && entry(pid.as_raw()).is_some_and(|process| !process.alive)
}

/// Whether a process is an ancestor of this one. `None` if /proc does not show that.
pub(super) fn is_ancestor(process: Pid) -> Option<bool> {
    let numbering = Numbering::read().filter(|numbering| numbering.depth == 0)?;
    descends(numbering.us, process.as_raw())
}

/// Whether a process descends from this one. `None` if /proc does not show that.
pub(super) fn is_descendant(process: Pid) -> Option<bool> {
    let numbering = Numbering::read().filter(|numbering| numbering.depth == 0)?;
    descends(process.as_raw(), numbering.us)
}

/// Whether there is a way up from a process to another one.
fn descends(mut from: i32, to: i32) -> Option<bool> {
    // A number that is used again meanwhile could close a circle.
    for _ in 0..GENERATIONS_MAX {
        from = entry(from)?.parent;
        match from {
            parent if parent == to => return Some(true),
            0 => return Some(false),
            _ => {}
        }
    }
    None
}

fn entry(listed: i32) -> Option<Entry> {
    parse(&fs::read_to_string(format!("/proc/{listed}/stat")).ok()?)
}

/// Parses the fields of proc_pid_stat(5) after the name, which can contain anything but ends at the
/// last parenthesis.
fn parse(stat: &str) -> Option<Entry> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let [state, parent, ..] = fields[..] else { return None };
    let threads: u32 = fields.get(17)?.parse().ok()?;
    Some(Entry {
        parent: parent.parse().ok()?,
        // A process whose first thread has ended looks like a zombie while others go on.
        alive: !matches!(state, "Z" | "X" | "x") || threads > 1,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// A living descendant of this process.
pub(super) struct Descendant {
    pub(super) pid: Pid,
    listed: i32,
    started: u64,
}

/// The living descendants that /proc shows. Zombies are left out, since they do nothing any more,
/// but their children are not. `None` if /proc cannot be read.
pub(super) fn descendants() -> Option<Vec<Descendant>> {
    let numbering = Numbering::read()?;
    let names = fs::read_dir("/proc").ok()?;
    let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let all: HashMap<i32, Entry> = numbers.filter_map(|listed| Some((listed, entry(listed)?))).collect();
    let descends = |listed: &i32| {
        // The list is no snapshot: a reused number could close a circle, so the number of steps is
        // limited.
        let ancestors = std::iter::successors(all.get(listed), |process| all.get(&process.parent));
        ancestors.take(all.len()).any(|process| process.parent == numbering.us)
    };
    let living = all.iter().filter(|(listed, process)| process.alive && descends(listed));
    let found = living.filter_map(|(listed, process)| {
        Some(Descendant { pid: numbering.here(*listed)?, listed: *listed, started: process.started })
    });
    Some(found.collect())
}

impl Descendant {
    /// Sends it a signal, and to nobody else: its number may be another process's by now, but the
    /// descriptor of a process never is (pidfd_open(2)).
    pub(super) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        let number = process::Pid::from_raw(self.pid.as_raw()).ok_or(Errno::ESRCH)?;
        let descriptor = match process::pidfd_open(number, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Err(Errno::ESRCH),
            // Old kernels and some sandboxes have no such descriptors, or there are too many.
            Err(_) => return kill(self.pid, signal),
        };
        if entry(self.listed).is_none_or(|now| now.started != self.started) {
            return Err(Errno::ESRCH);
        }
        let signal = process::Signal::from_named_raw(signal as i32).ok_or(Errno::EINVAL)?;
        process::pidfd_send_signal(descriptor, signal).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    /// What this process would do on a signal, or `None` if it has ended.
    pub(super) fn disposition(&self, signal: Signal) -> Option<Disposition> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.listed)).ok()?;
        let has = |set: &str| {
            let digits = status.lines().find_map(|line| line.strip_prefix(set))?;
            Some(u64::from_str_radix(digits.trim(), 16).ok()? & (1 << (signal as u32 - 1)) != 0)
        };
        let default = !has("SigCgt:")? && !has("SigIgn:")? && !has("SigBlk:")?;
        Some(if default { Disposition::Default } else { Disposition::Own })
    }
}

/// What a process does on a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    Default,
    /// The process catches, ignores or blocks it.
    Own,
}

#[cfg(test)]
mod tests {
    use nix::unistd::getppid;

    use super::*;

    /// A process can give itself a name that looks like the fields after it, and one whose first
    /// thread has ended is alive.
    #[test]
    fn fields_of_stat() {
        let stat = |name: &str, state: &str, threads: u32| {
            format!("12 ({name}) {state} 7 12 12 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 1 2 3\n")
        };
        let process = parse(&stat("a) Z 1 (b", "S", 1)).unwrap();
        assert_eq!((process.parent, process.alive, process.started), (7, true, 4711));
        assert!(!parse(&stat("x", "Z", 1)).unwrap().alive);
        assert!(parse(&stat("x", "Z", 2)).unwrap().alive);
        assert!(parse("12 (x").is_none());
        assert!(parse("12 (x) Z 7 12").is_none());
    }

    /// /proc shows the test itself and its child, by the numbers that wait(2) knows.
    #[test]
    fn a_child_is_listed() {
        assert!(is_usable());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let found = descendants().unwrap().into_iter().find(|process| process.pid == pid).expect("it lives");
        assert_eq!((is_descendant(pid), is_ancestor(pid)), (Some(true), Some(false)));
        assert_eq!((is_descendant(getppid()), is_ancestor(getppid())), (Some(false), Some(true)));
        assert_eq!(found.disposition(Signal::SIGTERM), Some(Disposition::Default));
        assert_eq!(found.signal(Signal::SIGKILL), Ok(()));
        child.wait().unwrap();
        assert_eq!(found.signal(Signal::SIGKILL), Err(Errno::ESRCH));
    }
}
