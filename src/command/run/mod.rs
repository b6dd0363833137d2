//! `distrilock run`: a command under a lock, in three processes, each the parent of the next.
//!
//! ```text
//!  the user's shell
//!      |  starts the launcher, and sees it stop, continue and end as CMD does
//!      v
//!  launcher    in the user's process group; holds nothing
//!      |         down: the signals that it gets, in a pipe
//!      |         up: SIGTSTP when CMD has stopped; a report of 3 bytes in a pipe
//!      |         if one of the two dies, the other kills CMD's tree
//!      v
//!  guard       in its own process group; holds the connection and so the lock; a subreaper
//!      |         down: signals to CMD's group
//!      |         up: SIGCHLD when CMD has stopped or ended; questions of `distrilock verify`
//!      |         if the guard dies, the kernel kills CMD, too
//!      v
//!  exec shim   in CMD's process group; takes the terminal, unblocks signals, becomes CMD
//!      |
//!      v
//!  CMD's tree  all that CMD starts, whatever its process group, session or parent
//! ```
//!
//! - `launcher`, `guard` and `exec_shim` are the three processes. `launcher_link` is the guard's
//!   side of what joins it to the launcher; `report` is what goes through the pipe.
//! - The guard acquires the lock (`guarded_lock`); its `supervisor` attends to CMD, as a `job` of
//!   the `terminal` and as a `process_tree`, and decides which signals go to it (`passing_on`).
//!   `process_list` reads /proc, and `children` knows what the kernel says without it.
//! - `stop_time` is how long ending CMD takes, which the client has to know.
//! - `once` is `--once-per`: whether CMD is due, and the record of its run.
//! - `no_fork` is `-F`: one process, which becomes CMD.
//!
//! docs/decisions/0015 has the reasons. It calls the launcher the front, and the exec shim the
//! start.

mod children;
mod exec_shim;
mod guard;
mod guarded_lock;
mod job;
mod launcher;
mod launcher_link;
mod no_fork;
mod once;
mod passing_on;
mod process_list;
mod process_tree;
mod random;
mod report;
mod stop_time;
mod supervisor;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use super::options::{RunOptions, ServerOptions};
use super::values::host_matches;
use super::{connect, output, status};

pub(super) use exec_shim::{WORD as EXEC_SHIM_WORD, main as exec_shim_main};
pub(super) use guard::{WORD as GUARD_WORD, main as guard_main};

/// Runs CMD under a lock. `arguments` are those of the whole command; the guard parses them again.
pub(super) fn main(options: &RunOptions, servers: &ServerOptions, arguments: &[OsString]) -> ExitCode {
    let checked = options.acquire.check().and_then(|()| options.words());
    let words = match checked {
        Ok(words) => words,
        Err(error) => {
            output::message(&format!("{error}; see distrilock run --help"));
            return ExitCode::from(status::USAGE);
        }
    };
    let host = connect::host();
    if !options.only_on.is_empty() && !host_matches(&host, &options.only_on) {
        if options.acquire.verbose {
            output::message(&format!("doing nothing: this host, {host}, is not in the list of --only-on"));
        }
        return ExitCode::from(status::DONE);
    }
    let ended = match options.no_fork {
        true => no_fork::main(options, &words, servers),
        false => launcher::main(arguments),
    };
    ended.unwrap_or_else(|error| ExitCode::from(output::report(&error, options.busy_status())))
}
