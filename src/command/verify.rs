//! `verify`: whether the lock under which this process runs is still held, by the very session that has it, and real. That session
//! is the guard's of the surrounding `distrilock run`, which is asked.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::options::Verify;
use super::run::{Answer, DESCRIPTOR, GUARD_SOCKET};
use super::say;
use super::trouble::Trouble;

/// For so long the guard is waited for. It gives up a daemon that does not answer before that.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Why the answer is no without a question.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotHeld {
    #[error("this process does not run under distrilock run: there is no lock to verify")]
    Nothing,
    #[error("this command runs without the lock, as --run-anyway said")]
    Anyway,
    #[error("{name} is not held: the distrilock run around this command holds {held}")]
    Another { name: String, held: String },
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoGuard {
    #[error(
        "under distrilock run -F nobody can be asked but the daemon, by descriptor {0} ($DISTRILOCK_FD): write \
         {{\"op\":\"verify\",\"lock\":NAME}} and a line's end to it, and read the answer"
    )]
    Descriptor(String),
    #[error(
        "$DISTRILOCK_GUARD is not set; was the distrilock run around this command another version, or short of descriptors?"
    )]
    Unset,
    #[error("$DISTRILOCK_GUARD is no name of a guard: {0}")]
    Strange(String),
    #[error(
        "{address}: the process that holds the lock is not reached: {error}; it has ended, and the lock with it, unless this \
         process is in another network namespace; stop the work"
    )]
    Unreachable { address: String, error: io::Error },
    #[error("{address}: the process that answers is user {uid}'s, and not the one that holds the lock; stop the work")]
    Stranger { address: String, uid: u32 },
    #[error(
        "{address}: the process that holds the lock does not answer: {error}; is it stopped? Whether the lock is held cannot be told"
    )]
    Silent { address: String, error: io::Error },
}

/// Says nothing if the locks are real.
pub(super) fn main(options: &Verify) -> Result<u8, Trouble> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    match variable("DISTRILOCK_HELD").as_deref() {
        None => return Err(NotHeld::Nothing.into()),
        Some("0") => return Err(NotHeld::Anyway.into()),
        Some(_) => {}
    }
    let held = variable("DISTRILOCK_LOCK").unwrap_or_default();
    let wanted = options.names.iter().flat_map(|names| &names.0);
    if let Some(name) = wanted.into_iter().find(|name| !held.split(',').any(|one| one == name.as_str())) {
        return Err(NotHeld::Another { name: name.to_string(), held }.into());
    }
    let address = match (variable(GUARD_SOCKET), variable(DESCRIPTOR)) {
        (Some(address), _) => address,
        (None, Some(number)) => return Err(NoGuard::Descriptor(number).into()),
        (None, None) => return Err(NoGuard::Unset.into()),
    };
    let answer = ask(&address)?;
    answer.message.lines().for_each(|line| say::error(&say::shown(line)));
    Ok(answer.status)
}

/// Connects, which is the question, and reads the answer.
fn ask(address: &str) -> Result<Answer, NoGuard> {
    let named = || address.to_owned();
    let strange = || NoGuard::Strange(named());
    let name = address.strip_prefix('@').ok_or_else(strange)?;
    let owner: u32 = name.split('/').nth(1).and_then(|uid| uid.parse().ok()).ok_or_else(strange)?;
    let place = SocketAddr::from_abstract_name(name).map_err(|_| strange())?;
    let unreachable = |error| NoGuard::Unreachable { address: named(), error };
    let guard = UnixStream::connect_addr(&place).map_err(unreachable)?;
    let peer = getsockopt(&guard, PeerCredentials).map_err(|errno| unreachable(errno.into()))?;
    if peer.uid() != owner {
        return Err(NoGuard::Stranger { address: named(), uid: peer.uid() });
    }
    let silent = |error| NoGuard::Silent { address: named(), error };
    guard.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(silent)?;
    let mut line = String::new();
    match BufReader::new(guard).read_line(&mut line).map_err(silent)? {
        // It let go of the lock while we asked.
        0 => Err(unreachable(io::ErrorKind::ConnectionReset.into())),
        _ => serde_json::from_str(&line).map_err(|error| silent(error.into())),
    }
}
