//! The lock while CMD runs. Only the connection that holds a lock can prove it to be real, and that
//! connection is the guard's. So the guard proves it for every process that connects to its socket
//! (`distrilock verify`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Pid, Uid};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::random;
use crate::command::acquire::AcquiredLock;
use crate::command::environment::LockEnvironment;
use crate::command::error::CommandError;
use crate::command::guard_socket::{self, GuardAddress, Verdict};
use crate::command::status;
use distrilock_client::{Held, Server, Standing};

/// The pause after a failed accept, for example when descriptors run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

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

/// Answers everyone, one after the other. Each answer costs the daemon a round trip, but anyone who
/// can ask here could also ask the daemon.
async fn answer_all(listener: UnixListener, lock: Arc<AcquiredLock>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_RETRY).await;
            continue;
        };
        let verdict = verify(&lock).await;
        let line = serde_json::to_string(&verdict).expect("a number and a text are JSON");
        // A line fits into the buffer of a new socket. A process that does not wait for it does not
        // want it.
        let _ = stream.writable().await.and_then(|()| stream.try_write(format!("{line}\n").as_bytes()));
    }
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
