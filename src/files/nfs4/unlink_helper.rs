//! Deletes a file from a process that lives only for a short time.
//!
//! A deletion carries no proof that its sender still holds the lock under which it deletes (RFC
//! 8881, section 18.25). If it is delayed on its way for longer than the lease, it could take
//! effect while somebody else holds a lock on the new file of that name. The kernel repeats a
//! request for as long as the process that made it lives, so the process that makes this request is
//! killed in time (docs/safety.md has the measurements). It also ends by itself: if the daemon is
//! stopped meanwhile, an alarm kills it.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{alarm, unlink as delete};

use crate::clock::now_ms;
use crate::files::lock_file::failed;
use distrilock_engine::fault::Operation;
use distrilock_engine::steps::call::CallResult;

/// The helper's first argument, by which the program recognises that it is one.
const WORD: &str = "--delete-before-the-lease-ends";

/// If the deletion is refused, the helper's exit status is this plus the errno.
const ERRNO_BASE: u8 = 100;

/// If this process was started to delete a file, deletes it and returns the exit status. Programs
/// that use lock files on a network file system call this before anything else.
#[must_use]
pub fn run_as_unlink_helper() -> Option<ExitCode> {
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
    // Nobody handles SIGALRM, so it kills; and a deadly signal ends a request to the server
    // (nfs(5), "intr").
    alarm::set(seconds);
    Some(match delete(path.as_os_str()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            ExitCode::from(u8::try_from(errno as i32).map_or(u8::MAX, |errno| ERRNO_BASE.saturating_add(errno)))
        }
    })
}

/// Deletes a file, or gives up when the clock of [`crate::clock`] reaches `deadline_ms`; after that
/// the deletion never takes effect.
pub(super) fn unlink(path: &CStr, deadline_ms: u64) -> CallResult {
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
        Ok(Some(0)) => return CallResult::Yes,
        Ok(Some(status)) if status > i32::from(ERRNO_BASE) => Errno::from_raw(status - i32::from(ERRNO_BASE)),
        Ok(_) => Errno::ETIMEDOUT,
        Err(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    };
    match errno {
        Errno::ENOENT | Errno::ESTALE => CallResult::Gone,
        errno => failed(Operation::Remove, path, errno),
    }
}

/// Waits for the helper, and kills it at its deadline. Returns `None` if a signal ended it.
fn status(mut child: Child, deadline_ms: u64) -> std::io::Result<Option<i32>> {
    if let Some(output) = &child.stdout {
        // The helper writes nothing, so the pipe closes when it ends. Whatever poll returns, nobody
        // waits for the helper any longer.
        let mut ends = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let left_ms = u16::try_from(deadline_ms.saturating_sub(now_ms())).unwrap_or(u16::MAX);
        let _ = poll(&mut ends, PollTimeout::from(left_ms));
    }
    // This does not matter to a helper that has ended already.
    let _ = child.kill();
    Ok(child.wait()?.code())
}
