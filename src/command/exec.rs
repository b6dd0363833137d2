//! Becoming or starting another program: the descriptors that it inherits, and what to say if it
//! does not run. Every descriptor that this program opens is closed at execve(2) unless it is made
//! inheritable here.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{output, status};

/// The program that this process runs, even if its file was moved or replaced.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Leaves a descriptor open in the programs that this process starts or becomes.
pub(super) fn make_inheritable(descriptor: impl AsFd) -> Result<(), Errno> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

/// Makes reads and writes block again, as other programs expect; the async runtime had made them
/// non-blocking.
pub(super) fn make_blocking(descriptor: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK))).map(drop)
}

/// Says why a program did not run, and returns the exit status for that.
pub(super) fn report_not_run(program: &OsStr, error: &io::Error) -> u8 {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "is it installed, and is its folder in PATH?",
        io::ErrorKind::PermissionDenied => "it must be a file that you may execute (chmod +x)",
        _ => "a script must begin with #! and its interpreter",
    };
    output::message(&format!("cannot run {}: {error}; {remedy}", output::escaped(&program.to_string_lossy())));
    status::NOT_RUN
}
