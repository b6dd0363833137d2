//! The lock while CMD runs. The connection that it lives by is the guard's, so that nobody else can prove it to be real: the guard
//! does, for every process that connects to its socket (`distrilock verify`). To connect is the whole question; the answer is a
//! line of JSON.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::variables;
use crate::command::trouble::Trouble;
use crate::command::{session, status};
use distrilock_client::{Client, Held, Standing};

/// The variable that names the guard's socket, in the abstract name space (unix(7)): there is no file to clean up.
pub(in crate::command) const GUARD: &str = "DISTRILOCK_GUARD";

/// After a failure to accept, as for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the guard says of its locks.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::command) struct Answer {
    /// The exit status that says it: 0 if all of them are real.
    pub(in crate::command) status: u8,
    /// What is wrong.
    pub(in crate::command) message: String,
}

/// A lock, and the task that answers for it.
pub(super) struct Lock {
    client: Client,
    held: Arc<Held>,
    answering: Option<(String, JoinHandle<()>)>,
}

impl Lock {
    /// Begins to answer. Where that cannot be had, CMD runs all the same, and cannot ask.
    pub(super) fn new(client: Client, held: Held) -> Self {
        let held = Arc::new(held);
        let answering = listen()
            .ok()
            .map(|(name, listener)| (name, tokio::spawn(answer(listener, client.clone(), Arc::clone(&held)))));
        Self { client, held, answering }
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// What CMD is told.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let guard = self.answering.as_ref().map(|(name, _)| (GUARD, format!("@{name}")));
        variables(&self.client.welcome().session, &self.held).into_iter().chain(guard).collect()
    }

    /// Answers nobody any more, and gives the lock to be released. The client goes with it, since its end is the connection's.
    pub(super) async fn into_held(self) -> Option<(Client, Held)> {
        if let Some((_, answering)) = self.answering {
            answering.abort();
            let _ = answering.await;
        }
        Some((self.client, Arc::into_inner(self.held)?))
    }
}

/// A socket under a name that nobody else has. The name tells the user whom the asker may believe: when the guard has gone,
/// anybody could take it.
fn listen() -> std::io::Result<(String, UnixListener)> {
    let name = format!("distrilock-run/{}/{}-{:x}", Uid::effective(), Pid::this(), session::random());
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok((name, UnixListener::from_std(listener)?))
}

/// Answers everyone, one after the other: the answer is a round trip to the daemon, and whoever could ask it for more by asking
/// here could ask it as well.
async fn answer(listener: UnixListener, client: Client, held: Arc<Held>) {
    loop {
        let Ok((asker, _)) = listener.accept().await else {
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let answer = proof(&client, &held).await;
        let line = serde_json::to_string(&answer).expect("a number and a text are JSON");
        // A line fits into the buffer of a socket that is new. Who does not wait for it does not want it.
        let _ = asker.writable().await.and_then(|()| asker.try_write(format!("{line}\n").as_bytes()));
    }
}

async fn proof(client: &Client, held: &Held) -> Answer {
    let server = client.server().clone();
    let trouble = match (held.verify().await, held.standing()) {
        (_, Standing::Lost(lost)) => Trouble::Lost { server, lost },
        (Ok(()), _) => return Answer { status: status::DONE, message: String::new() },
        (Err(error), _) => Trouble::Request { server, error },
    };
    Answer { status: trouble.status(status::BUSY), message: trouble.to_string() }
}
