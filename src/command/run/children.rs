//! The children of this process, as the kernel reports them (wait(2)), whether or not /proc shows
//! them.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{self, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use crate::command::status;

/// The highest number that a process can have on any system (proc_sys_kernel(5), `pid_max`).
const PID_MAX: i32 = 1 << 22;

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChildEvent {
    Ended(Pid, Ending),
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

impl Ending {
    fn of(status: WaitStatus) -> Option<Self> {
        if let Some(number) = status.terminating_signal() {
            // A real-time signal is one that nix has no name for.
            let number_alone =
                || Self::Status(status::SIGNALLED.saturating_add(u8::try_from(number).unwrap_or(u8::MAX)));
            return Some(Signal::try_from(number).map_or_else(|_| number_alone(), Self::Signal));
        }
        Some(Self::Status(u8::try_from(status.exit_status()? & 0xff).expect("it is one byte")))
    }
}

/// Asks for the next thing that happened to a child, and reaps the child if it has ended.
pub(super) fn next_event() -> Result<ChildEvent, Errno> {
    let (pid, status) = match process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        Ok(Some(event)) => event,
        Ok(None) => return Ok(ChildEvent::Nothing),
        Err(rustix::io::Errno::CHILD) => return Ok(ChildEvent::NoChildren),
        Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())),
    };
    let pid = Pid::from_raw(pid.as_raw_nonzero().get());
    if let Some(ending) = Ending::of(status) {
        return Ok(ChildEvent::Ended(pid, ending));
    }
    let by = status.stopping_signal().and_then(|number| Signal::try_from(number).ok());
    Ok(ChildEvent::Stopped(pid, by.unwrap_or(Signal::SIGSTOP)))
}

/// Reaps the children that have ended. Returns true if no children are left, and so no descendants
/// either.
pub(super) fn reap() -> Result<bool, Errno> {
    loop {
        match next_event()? {
            ChildEvent::NoChildren => return Ok(true),
            ChildEvent::Nothing => return Ok(false),
            ChildEvent::Ended(..) | ChildEvent::Stopped(..) => {}
        }
    }
}

/// Waits for this child's end. Returns `None` if nobody knows how it ended, since SIGCHLD is
/// ignored or the child was reaped.
pub(super) fn wait_for(child: Pid) -> Option<Ending> {
    let child = process::Pid::from_raw(child.as_raw())?;
    loop {
        match process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ending::of(status),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Whether this is the number of a child that has not ended.
pub(super) fn is_living_child(pid: Pid) -> bool {
    let Some(pid) = process::Pid::from_raw(pid.as_raw()) else { return false };
    let looks = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(process::waitid(WaitId::Pid(pid), looks), Ok(None))
}

/// The children that have not ended, found without /proc, by trying every number. That takes up to
/// a second, if numbers go up to four million.
pub(super) fn all_living() -> Vec<Pid> {
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    let numbers = 1..=pid_max.unwrap_or(PID_MAX).min(PID_MAX);
    numbers.map(Pid::from_raw).filter(|pid| is_living_child(*pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A living child is found without /proc, and an ended one is not.
    #[test]
    fn children_without_proc() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(all_living().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!all_living().contains(&pid));
    }
}
