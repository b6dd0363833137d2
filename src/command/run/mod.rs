//! `distrilock run`: a command under a lock, in four processes one below the other.
//!
//! ```text
//! front    what the user started: passes signals on, stops and ends as CMD does
//!  guard   holds the connection and so the lock; a subreaper; ends CMD's tree when the lock is lost or the front dies
//!   start  becomes CMD, in a process group of its own
//! ```
//!
//! docs/decisions/0015 says why.

mod answer;
mod front;
mod guard;
mod job;
mod plain;
mod report;
mod signals;
mod start;
mod terminal;
mod tree;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use super::options::Run;
use super::values::is_one_of;
use super::{say, session, status};
use distrilock_client::Server;

pub(super) use answer::{Answer, GUARD as GUARD_SOCKET};
pub(super) use guard::{WORD as GUARD, main as guard};
pub(super) use plain::DESCRIPTOR;
pub(super) use signals::is_ignored;
pub(super) use start::{WORD as START, main as start, not_run};

/// Runs CMD under a lock. `arguments` are those of the whole command, which the guard reads again.
pub(super) fn main(options: &Run, servers: &[Server], arguments: &[OsString]) -> ExitCode {
    let checked = options.asking.check(&options.names).and_then(|()| options.words());
    let words = match checked {
        Ok(words) => words,
        Err(contradiction) => {
            say::error(&format!("{contradiction}; see distrilock run --help"));
            return ExitCode::from(status::USAGE);
        }
    };
    let host = session::host();
    if !options.only_on.is_empty() && !is_one_of(&host, &options.only_on) {
        if options.asking.verbose {
            say::error(&format!("{host} is none of the hosts of --only-on"));
        }
        return ExitCode::from(status::DONE);
    }
    let ended = if options.no_fork { plain::main(options, &words, servers) } else { front::main(arguments) };
    ended.unwrap_or_else(|trouble| ExitCode::from(trouble.tell(options.busy_status())))
}

/// The variables that CMD finds, set by us or left by an outer `distrilock run`.
const VARIABLES: [&str; 8] = [
    "DISTRILOCK_LOCK",
    "DISTRILOCK_SLOT",
    "DISTRILOCK_FENCE",
    "DISTRILOCK_TOKEN",
    "DISTRILOCK_SESSION",
    "DISTRILOCK_HELD",
    answer::GUARD,
    DESCRIPTOR,
];

/// What CMD is told of the lock. Several locks stand in the order in which they were asked for, separated by commas, and so do
/// the slots of one; a lock without a slot, or without a fence, has none there.
fn variables(session: &str, held: &distrilock_client::Held) -> Vec<(&'static str, String)> {
    let join = |parts: Vec<String>| if parts.is_empty() { None } else { Some(parts.join(",")) };
    let locks = held.locks();
    let lock = join(locks.iter().map(|lock| lock.name.to_string()).collect());
    let slot = join(locks.iter().flat_map(|lock| lock.slots.iter().map(ToString::to_string)).collect());
    let fence = join(locks.iter().filter_map(|lock| Some(lock.fence?.to_string())).collect());
    let values = [lock, slot, fence.clone(), fence, Some(session.to_owned()), Some("1".to_owned())];
    VARIABLES.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
}
