//! The socket over which the guard of `distrilock run` says whether its lock is still real: the
//! address, and the answer. To connect is the whole question. `run` answers, `verify` asks.

use std::io::{self, BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::verify_error::AskGuardError;

/// The variable that holds the address: a name in the abstract namespace (unix(7)), so there is no
/// file to clean up.
pub(super) const VARIABLE: &str = "DISTRILOCK_GUARD";

/// How long to wait for the answer. The guard gives up on a silent daemon before that.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// What the guard says about its locks: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// The exit status that `verify` takes from it: 0 if all locks are real.
    pub(super) status: u8,
    /// What is wrong.
    pub(super) message: String,
}

/// The address of a guard: an abstract name that contains its user and is otherwise unique. The
/// user shows whom to believe: once the guard is gone, anybody could take the name.
#[derive(Debug)]
pub(super) struct GuardAddress {
    name: String,
    uid: u32,
}

impl GuardAddress {
    /// The address for a guard that runs as this user; `unique` is different for every guard.
    pub(super) fn new(uid: u32, unique: &str) -> Self {
        Self { name: format!("distrilock-run/{uid}/{unique}"), uid }
    }

    /// Reads what [`GuardAddress::variable`] wrote.
    fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix('@')?;
        let uid = name.split('/').nth(1)?.parse().ok()?;
        Some(Self { name: name.to_owned(), uid })
    }

    /// The value of the variable.
    pub(super) fn variable(&self) -> String {
        format!("@{}", self.name)
    }

    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&self.name)?)
    }
}

/// Connects, which is the question, and reads the answer.
pub(super) fn ask(address: &str) -> Result<Verdict, AskGuardError> {
    let bad_address = || AskGuardError::BadAddress(address.to_owned());
    let guard = GuardAddress::parse(address).ok_or_else(bad_address)?;
    let socket = SocketAddr::from_abstract_name(&guard.name).map_err(|_| bad_address())?;
    let unreachable = |error| AskGuardError::Unreachable { address: address.to_owned(), error };
    let stream = UnixStream::connect_addr(&socket).map_err(unreachable)?;
    let peer = getsockopt(&stream, PeerCredentials).map_err(|errno| unreachable(errno.into()))?;
    if peer.uid() != guard.uid {
        return Err(AskGuardError::WrongUser { address: address.to_owned(), uid: peer.uid() });
    }
    let no_answer = |error| AskGuardError::NoAnswer { address: address.to_owned(), error };
    stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(no_answer)?;
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line).map_err(no_answer)? {
        // The guard released the lock while we asked.
        0 => Err(unreachable(io::ErrorKind::ConnectionReset.into())),
        _ => serde_json::from_str(&line).map_err(|error| no_answer(error.into())),
    }
}
