//! The lock while CMD runs. Only the connection that holds a lock can prove it to be real, and that
//! connection is the guard's. So the guard proves it for every process that connects to its socket
//! (`distrilock verify`).

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Pid, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::process_list::is_descendant;
use super::random;
use crate::command::acquire::AcquiredLock;
use crate::command::environment::LockEnvironment;
use crate::command::error::CommandError;
use crate::command::guard_socket::{self, GuardAddress, Verdict};
use crate::command::status;
use distrilock_client::{Held, Server, Standing};

/// The pause after a failed accept, for example when descriptors run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How many questions wait for the next answer: more than a command asks at once.
const QUESTIONS_MAX: usize = 64;

/// How long a release may take before the end of the connection has to do.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(2);

/// A held lock, and the task that answers for it.
pub(super) struct GuardedLock {
    lock: Arc<AcquiredLock>,
    verify_socket: Option<VerifySocket>,
}

/// Where processes ask whether the lock is real.
struct VerifySocket {
    address: GuardAddress,
    task: JoinHandle<()>,
}

impl GuardedLock {
    /// Starts to answer. If that fails, CMD still runs, but cannot ask.
    pub(super) fn new(lock: AcquiredLock) -> Self {
        let lock = Arc::new(lock);
        let verify_socket = listen().ok().map(|(address, listener)| VerifySocket {
            address,
            task: tokio::spawn(answer_all(listener, Arc::clone(&lock))),
        });
        Self { lock, verify_socket }
    }

    /// What is held, and the connection that it lives by.
    pub(super) fn acquired(&self) -> &AcquiredLock {
        &self.lock
    }

    /// What is held.
    pub(super) fn held(&self) -> &Held {
        &self.lock.held
    }

    /// How long it may take to stop CMD once the lock is lost.
    pub(super) fn stop_within(&self) -> Duration {
        self.lock.client.stop_within()
    }

    /// The server that granted the lock.
    pub(super) fn server(&self) -> &Server {
        self.lock.client.server()
    }

    /// What CMD learns about the lock.
    pub(super) fn environment(&self) -> LockEnvironment {
        let environment = LockEnvironment::held(&self.lock.client, &self.lock.held);
        match &self.verify_socket {
            Some(socket) => environment.with(guard_socket::VARIABLE, socket.address.variable()),
            None => environment,
        }
    }

    /// Stops answering and releases the lock, so that it is free when the user sees us end. If the
    /// daemon does not answer, the end of the connection releases it.
    pub(super) async fn release(self) {
        if let Some(socket) = self.verify_socket {
            socket.task.abort();
            let _ = socket.task.await;
        }
        // The client stays until then, since its end is the connection's.
        let Some(AcquiredLock { client: _client, held }) = Arc::into_inner(self.lock) else { return };
        let _ = timeout(RELEASE_TIME_MAX, held.release()).await;
    }
}

/// Listens at an address that no other guard has.
fn listen() -> io::Result<(GuardAddress, UnixListener)> {
    let unique = format!("{}-{:x}", Pid::this(), random::number());
    let address = GuardAddress::new(Uid::effective().as_raw(), &unique);
    let listener = address.listen()?;
    listener.set_nonblocking(true)?;
    Ok((address, UnixListener::from_std(listener)?))
}

/// Answers everyone who may ask. Questions that come while the daemon is asked share the next
/// answer, so that many of them cost no more round trips than two, and none of them waits longer.
/// What is beyond the limit stays in the socket's queue.
async fn answer_all(listener: UnixListener, lock: Arc<AcquiredLock>) {
    let owner = Uid::effective();
    let mut waiting: Vec<UnixStream> = Vec::new();
    loop {
        if waiting.is_empty() {
            waiting.extend(next_question(&listener, owner).await);
            continue;
        }
        // From here on, the daemon's answer is about all of these.
        let asked = std::mem::take(&mut waiting);
        let mut verdict = pin!(verify(&lock));
        let verdict = loop {
            tokio::select! {
                verdict = &mut verdict => break verdict,
                question = next_question(&listener, owner), if waiting.len() < QUESTIONS_MAX => waiting.extend(question),
            }
        };
        let line = serde_json::to_string(&verdict).expect("a number and a text are JSON");
        asked.into_iter().for_each(|stream| answer(&stream, &line));
    }
}

/// Waits for a question. That of a process which may not ask is answered at once, without asking
/// the daemon: another user's, unless CMD has started it, as with su(1).
async fn next_question(listener: &UnixListener, owner: Uid) -> Option<UnixStream> {
    let Ok((stream, _)) = listener.accept().await else {
        sleep(ACCEPT_RETRY).await;
        return None;
    };
    let peer = stream.peer_cred().ok()?;
    let descends = || peer.pid().is_some_and(|pid| is_descendant(Pid::from_raw(pid)) == Some(true));
    if peer.uid() == owner.as_raw() || Uid::from_raw(peer.uid()).is_root() || descends() {
        return Some(stream);
    }
    let message = format!(
        "only the command that holds the lock, user {owner}, who started it, and root may ask whether it is held"
    );
    let verdict = Verdict { status: status::DENIED, message };
    answer(&stream, &serde_json::to_string(&verdict).expect("a number and a text are JSON"));
    None
}

/// A line fits into the buffer of a new socket. A process that does not wait for it does not want
/// it.
fn answer(stream: &UnixStream, line: &str) {
    // A stream counts as writable for tokio only once that was asked for.
    let line = format!("{line}\n");
    let _ = nix::unistd::write(stream, line.as_bytes());
}

async fn verify(AcquiredLock { client, held }: &AcquiredLock) -> Verdict {
    let server = client.server().clone();
    let error = match (held.verify().await, held.standing()) {
        (_, Standing::Lost(lost)) => CommandError::Lost { server, lost },
        (Ok(()), _) => return Verdict { status: status::DONE, message: String::new() },
        (Err(error), _) => CommandError::Request { server, error },
    };
    Verdict { status: error.status(status::BUSY), message: error.to_string() }
}
