//! Deleting a file from a process that does not live for long.
//!
//! A deletion carries no proof that its sender still holds the lock under which it deletes (RFC 8881, section 18.25). One that
//! is held up on its way for longer than the lease could take effect when somebody else holds a lock on the new file of that name.
//! The kernel sends a request again and again for as long as the process that made it lives; so the process that makes this one
//! is killed in time (docs/safety.md has the measurements). It ends by itself, too: if the daemon is stopped meanwhile, an alarm
//! kills it.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{alarm, unlink as delete};

use crate::clock::now_ms;
use crate::files::os::failed;
use distrilock_engine::fault::Operation;
use distrilock_engine::steps::call::CallResult as Answer;

/// The first argument of the process: what it is for.
const WORD: &str = "--delete-before-the-lease-ends";

/// The exit status of a deletion that was refused with an errno is this plus the errno.
const ERRNO_BASE: u8 = 100;

/// If this process was started to delete a file, does that and tells with what status to exit. Programs that use lock files on a
/// network file system call it first of all.
#[must_use]
pub fn take_over() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let deadline_ms: u64 = arguments.next()?.to_str()?.parse().ok()?;
    let path = arguments.next()?;
    let left_ms = deadline_ms.saturating_sub(now_ms());
    if left_ms == 0 {
        return Some(ExitCode::FAILURE);
    }
    let seconds = u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX);
    // SIGALRM kills, as nobody handles it, and a deadly signal ends a request to the server (nfs(5), "intr").
    alarm::set(seconds);
    Some(match delete(path.as_os_str()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            ExitCode::from(u8::try_from(errno as i32).map_or(u8::MAX, |errno| ERRNO_BASE.saturating_add(errno)))
        }
    })
}

/// Deletes a file, or gives up at that time on the clock of [`crate::clock`]; then the deletion never takes effect.
pub(super) fn unlink(path: &CStr, deadline_ms: u64) -> Answer {
    let deadline = deadline_ms.to_string();
    let arguments = [OsStr::new(WORD), OsStr::new(&deadline), OsStr::from_bytes(path.to_bytes())];
    let started = Command::new("/proc/self/exe")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let errno = match started.and_then(|child| status(child, deadline_ms)) {
        Ok(Some(0)) => return Answer::Yes,
        Ok(Some(status)) if status > i32::from(ERRNO_BASE) => Errno::from_raw(status - i32::from(ERRNO_BASE)),
        Ok(_) => Errno::ETIMEDOUT,
        Err(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    };
    match errno {
        Errno::ENOENT | Errno::ESTALE => Answer::Gone,
        errno => failed(Operation::Remove, path, errno),
    }
}

/// Waits for the process, and kills it when its time is over. `None`: a signal ended it.
fn status(mut child: Child, deadline_ms: u64) -> std::io::Result<Option<i32>> {
    if let Some(output) = &child.stdout {
        // It writes nothing: the pipe ends with it. Whatever poll says, the process is not waited for any longer.
        let mut ends = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let left_ms = u16::try_from(deadline_ms.saturating_sub(now_ms())).unwrap_or(u16::MAX);
        let _ = poll(&mut ends, PollTimeout::from(left_ms));
    }
    // One that has ended already is not hurt.
    let _ = child.kill();
    Ok(child.wait()?.code())
}
