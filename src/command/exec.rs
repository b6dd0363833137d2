//! Becoming or starting another program: the descriptors that it inherits, and what to say if it
//! does not run. Every descriptor that this program opens is closed at execve(2) unless it is made
//! inheritable here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{close, execvpe};

use super::error::CommandError;
use super::given_signals::GivenSignals;
use super::{output, status};
use crate::shortage;

/// The program that this process runs, even if its file was moved or replaced.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// stderr.
const STREAMS_MAX: RawFd = 2;

/// Leaves a descriptor open in the programs that this process starts or becomes.
pub(super) fn make_inheritable(descriptor: impl AsFd) -> Result<(), Errno> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

/// Takes over a descriptor whose number the previous process passed. It is opened again; the copy
/// that we inherited would stay open in the programs that this process starts.
pub(super) fn take_inherited(descriptor: RawFd, options: &OpenOptions) -> io::Result<File> {
    let file = options.open(format!("/proc/self/fd/{descriptor}"))?;
    close(descriptor)?;
    Ok(file)
}

/// The descriptors beyond the standard streams that are open now. Called at the start, these are
/// the inherited ones.
pub(super) fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let names = fs::read_dir("/proc/self/fd")?.map(|name| Ok(name?.file_name()));
    let names: Vec<OsString> = names.collect::<io::Result<_>>()?;
    // One of them was the folder's, which is closed only now.
    let is_open = |number: &RawFd| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    Ok(numbers.filter(|number| *number > STREAMS_MAX).filter(is_open).collect())
}

/// Closes inherited descriptors, which nothing in this process uses.
pub(super) fn close_inherited(descriptors: &[RawFd]) {
    for descriptor in descriptors {
        let _ = close(*descriptor);
    }
}

/// Makes reads and writes block again, as other programs expect; the async runtime had made them
/// non-blocking.
pub(super) fn make_blocking(descriptor: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK))).map(drop)
}

/// Checks that this process can open this many descriptors at once.
pub(super) fn check_descriptors(count: usize) -> Result<(), CommandError> {
    shortage::check_descriptors(count).map_err(|error| CommandError::Descriptors { count, error })
}

/// Becomes another program, which finds the signals like this. Returns only if that fails. Of the
/// command, only the program, the arguments and the environment count.
pub(super) fn become_program(command: &mut Command, given: GivenSignals) -> io::Error {
    if let Err(errno) = given.restore_blocked() {
        return errno.into();
    }
    if !given.is_ignored(Signal::SIGPIPE) {
        return command.exec();
    }
    // The standard library has SIGPIPE ignored and would give the program its default.
    let Err(error) = execute(command);
    error
}

/// execve(2) as it is.
fn execute(command: &Command) -> io::Result<Infallible> {
    let mut environment: BTreeMap<OsString, OsString> = env::vars_os().collect();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => environment.insert(name.to_owned(), value.to_owned()),
            None => environment.remove(name),
        };
    }
    let text = |part: &[u8]| CString::new(part).map_err(io::Error::from);
    let program = text(command.get_program().as_bytes())?;
    let arguments: io::Result<Vec<CString>> = command.get_args().map(|argument| text(argument.as_bytes())).collect();
    let arguments = [vec![program.clone()], arguments?].concat();
    let variables = environment.iter().map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
    let variables: io::Result<Vec<CString>> = variables.collect();
    Ok(execvpe(&program, &arguments, &variables?)?)
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
