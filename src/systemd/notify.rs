//! Messages to the service manager, sd_notify(3), and the interval of watchdog pings.
//!
//! `sd-notify` formats the messages; this module sends them, because the crate opens a descriptor
//! for each message and may block. `READY=1` and the watchdog's pings must get through when
//! descriptors have run out, and a service manager that reads nothing must not stop the daemon.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};
use sd_notify::NotifyState;

use crate::shortage::is_shortage;
use crate::sync::locked;

/// How long [`Notifier::ready`] waits for room in the manager's queue. Only this message waits: the
/// manager kills a service whose `READY=1` was lost, and no session is served yet.
const READY_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long [`Notifier::barrier`] waits for the manager.
const BARRIER_MS_MAX: u16 = 1000;

/// How often [`Notifier::while_starting`] asks for more time, and how much it asks for. The manager
/// gives up only on a daemon that has not asked for a while.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY_USEC: u32 = 30_000_000;

/// How long it keeps asking. Grace periods of file servers are shorter; if the server has not
/// answered by then, the service fails, and an operator sees it.
const EXTEND_FOR_MAX: Duration = Duration::from_secs(600);

/// Informs the service manager about the daemon; does nothing without one.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<Manager>,
}

/// The service manager's socket, and everything that messages to it will need, open from the start:
/// none is lost for lack of descriptors. The sockets are not connected, so the manager may restart.
#[derive(Debug)]
struct Manager {
    /// Never waits.
    socket: UnixDatagram,
    /// Waits for room, so that a ping from another thread does not have to wait as well.
    waiting: UnixDatagram,
    address: SocketAddr,
    /// For the barrier at the end of the daemon.
    barrier: Mutex<Option<(OwnedFd, OwnedFd)>>,
}

impl Notifier {
    /// Uses the manager that `NOTIFY_SOCKET` names, and leaves the environment unchanged.
    ///
    /// # Errors
    /// If the system has no resources for it just now.
    pub fn from_env() -> io::Result<Self> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) if !path.is_empty() => Self::to(Path::new(&path)),
            _ => Ok(Self::default()),
        }
    }

    /// Uses the manager whose socket is at `path`; a leading `@` means the abstract namespace,
    /// unix(7).
    ///
    /// If the path cannot be used, that is logged at debug level, and the notifier does nothing.
    ///
    /// # Errors
    /// If the system has no resources for it just now: a notifier that did nothing for that reason
    /// would lose `READY=1`, and the manager would end the daemon.
    pub fn to(path: &Path) -> io::Result<Self> {
        match Manager::new(path) {
            Ok(manager) => Ok(Self { manager: Some(manager) }),
            Err(error) if is_shortage(&error) => Err(error),
            Err(error) => {
                tracing::debug!(%error, ?path, "cannot use NOTIFY_SOCKET");
                Ok(Self::default())
            }
        }
    }

    /// Sends `READY=1`: the daemon serves. Waits for room for two seconds at most.
    pub fn ready(&self) {
        self.send(&NotifyState::Ready);
    }

    /// Runs a part of the start that may take long, and meanwhile asks the manager for more time:
    /// `EXTEND_TIMEOUT_USEC=`, which takes effect when the service's TimeoutStartSec= has run out
    /// (sd_notify(3)).
    pub fn while_starting<T>(&self, work: impl FnOnce() -> T) -> T {
        self.ask_every(EXTEND_EVERY, work)
    }

    fn ask_every<T>(&self, period: Duration, work: impl FnOnce() -> T) -> T {
        if self.manager.is_none() {
            return work();
        }
        thread::scope(|scope| {
            let (working, done) = channel::<()>();
            let asking = move || {
                let began = Instant::now();
                while began.elapsed() < EXTEND_FOR_MAX && done.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                    self.send(&NotifyState::ExtendTimeoutUsec(EXTEND_BY_USEC));
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, asking) {
                tracing::warn!("cannot ask the service manager for more time to start: {error}");
            }
            let value = work();
            // This ends the thread.
            drop(working);
            value
        })
    }

    /// Sends `STOPPING=1`: the daemon has begun to stop.
    pub fn stopping(&self) {
        self.send(&NotifyState::Stopping);
    }

    /// Sends a line for `systemctl status`. Control characters become spaces, because a line break
    /// would begin another message.
    pub fn status(&self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.send(&NotifyState::Status(&line));
    }

    /// Whether there is a manager that keeps descriptors for the next process. Before version 254
    /// systemd does not say how many it keeps (`FDSTORE`, systemd.exec(5)); the daemon then assumes
    /// that it keeps them, as its unit says.
    #[must_use]
    pub fn keeps_descriptors(&self) -> bool {
        self.manager.is_some() && std::env::var_os("FDSTORE").is_none_or(|count| count != "0" && count != "1")
    }

    /// Asks the manager to keep descriptors for the next process, even if their other ends are
    /// closed: `FDSTORE=1`, `FDPOLL=0`.
    ///
    /// # Errors
    /// If the message cannot be sent.
    pub fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message = joined(&[NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")]);
        self.manager.as_ref().map_or(Ok(()), |manager| manager.send_and_wait(&message, descriptors))
    }

    /// Asks the manager to drop descriptors that the daemon does not know: `FDSTOREREMOVE=1`.
    pub fn forget(&self, names: &[String]) {
        for name in names {
            tracing::warn!("the service manager kept {name:?}, which this daemon does not know; it has been closed");
            if let Some(manager) = &self.manager
                && let Err(error) = manager.send(&joined(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]))
            {
                tracing::warn!("cannot ask the service manager to drop {name:?}: {error}");
            }
        }
    }

    /// Waits until the manager has processed all earlier messages, for a second at most:
    /// `BARRIER=1`, sd_notify_barrier(3).
    ///
    /// # Errors
    /// If it cannot be asked, or does not answer in time.
    pub fn barrier(&self) -> io::Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let kept = locked(&manager.barrier).take();
        let (ours, theirs) = kept.map_or_else(|| pipe2(OFlag::O_CLOEXEC), Ok)?;
        manager.send_and_wait("BARRIER=1", &[theirs.as_fd()])?;
        drop(theirs);
        // The manager closes its end when it reaches this message.
        let mut pipe = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        match poll(&mut pipe, PollTimeout::from(BARRIER_MS_MAX))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Sends `WATCHDOG=1`: the daemon is alive.
    pub fn watchdog(&self) {
        self.send(&NotifyState::Watchdog);
    }

    fn send(&self, state: &NotifyState<'_>) {
        let Some(manager) = &self.manager else {
            return;
        };
        let message = state.to_string();
        let sent = match state {
            NotifyState::Ready => manager.send_and_wait(&message, &[]),
            _ => manager.send(&message),
        };
        match sent {
            Err(error) if matches!(state, NotifyState::Ready) => {
                tracing::warn!("the service manager did not take READY=1, and will end this daemon: {error}");
            }
            Err(error) => tracing::debug!(%error, message, "the service manager did not take a message"),
            Ok(()) => {}
        }
    }
}

impl Manager {
    fn new(path: &Path) -> io::Result<Self> {
        let address = match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(path)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let waiting = UnixDatagram::unbound()?;
        waiting.set_write_timeout(Some(READY_WAIT_MAX))?;
        let barrier = Mutex::new(Some(pipe2(OFlag::O_CLOEXEC)?));
        Ok(Self { socket, waiting, address, barrier })
    }

    fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }

    /// Sends a message that must arrive, with or without descriptors, and waits for room.
    fn send_and_wait(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let address = match (self.address.as_pathname(), self.address.as_abstract_name()) {
            (Some(path), _) => SocketAddrUnix::new(path)?,
            (_, Some(name)) => SocketAddrUnix::new_abstract_name(name)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg_addr(&self.waiting, &address, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Several states as one message.
fn joined(states: &[NotifyState<'_>]) -> String {
    states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The interval of watchdog pings: half of `WATCHDOG_USEC`, as sd_watchdog_enabled(3) advises. None
/// without a watchdog, or if it watches another process (`WATCHDOG_PID`).
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    half(sd_notify::watchdog_enabled())
}

/// Zero and the largest value mean that there is no watchdog.
fn half(limit: Option<Duration>) -> Option<Duration> {
    limit.filter(|limit| !limit.is_zero() && *limit < Duration::from_micros(u64::MAX)).map(|limit| limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager's socket with a read timeout, and a notifier that uses it.
    fn manager() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let notifier = Notifier::to(&path).unwrap();
        (dir, socket, notifier)
    }

    fn read(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn each_call_is_one_message() {
        // A whole life: ready, a status, a ping, stopping.
        let (_dir, socket, notifier) = manager();
        notifier.ready();
        notifier.status("3 sessions, 5 locks");
        notifier.watchdog();
        notifier.stopping();
        for message in ["READY=1", "STATUS=3 sessions, 5 locks", "WATCHDOG=1", "STOPPING=1"] {
            assert_eq!(read(&socket), message);
        }
    }

    #[test]
    fn a_long_start_asks_for_time() {
        // Work that ends after three requests for time, and work that ends at once and asks for
        // nothing.
        let (_dir, socket, notifier) = manager();
        let answer = notifier.ask_every(Duration::from_millis(1), || {
            (0..3).for_each(|_| assert_eq!(read(&socket), "EXTEND_TIMEOUT_USEC=30000000"));
            42
        });
        assert_eq!(answer, 42);
        let (_dir, socket, notifier) = manager();
        assert_eq!(notifier.while_starting(|| 42), 42);
        notifier.ready();
        assert_eq!(read(&socket), "READY=1");
        assert_eq!(Notifier::default().while_starting(|| 42), 42);
    }

    #[test]
    fn a_status_cannot_carry_a_second_message() {
        // Somebody gets a line break into the status.
        let (_dir, socket, notifier) = manager();
        notifier.status("a\nMAINPID=1\r\u{1b}b");
        assert_eq!(read(&socket), "STATUS=a MAINPID=1  b");
    }

    #[test]
    fn an_abstract_name_works() {
        // A manager in the abstract name space, as in some containers.
        let name = format!("distrilock-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(Path::new(&format!("@{name}"))).unwrap().ready();
        assert_eq!(read(&socket), "READY=1");
    }

    #[test]
    fn a_manager_that_reads_nothing_does_not_stop_the_daemon() {
        // A thousand messages into a socket whose queue holds far fewer.
        let (_dir, socket, notifier) = manager();
        for _ in 0..1000 {
            notifier.watchdog();
        }
        let start = Instant::now();
        notifier.ready();
        assert!(start.elapsed() >= READY_WAIT_MAX / 2, "READY=1 did not wait");
        // When there is room again, messages arrive again.
        assert_eq!(read(&socket), "WATCHDOG=1");
        notifier.stopping();
        while read(&socket) != "STOPPING=1" {}
    }

    #[test]
    fn ready_waits_for_room() {
        // The queue is full when the daemon gets ready; the manager reads a little later.
        let (_dir, socket, notifier) = manager();
        for _ in 0..1000 {
            notifier.watchdog();
        }
        thread::scope(|scope| {
            scope.spawn(|| notifier.ready());
            while read(&socket) != "READY=1" {}
        });
    }

    #[test]
    fn a_manager_that_is_gone_is_ignored() {
        // The socket is gone, the address is of an unsupported kind, or there is no manager.
        let (dir, socket, notifier) = manager();
        drop(socket);
        drop(dir);
        for notifier in [notifier, Notifier::to(Path::new("vsock:2:1234")).unwrap(), Notifier::default()] {
            notifier.ready();
            notifier.watchdog();
            notifier.stopping();
        }
    }

    #[test]
    fn pings_come_twice_in_the_watchdogs_time() {
        // A usual limit, none, and the two values that mean none.
        assert_eq!(half(Some(Duration::from_secs(30))), Some(Duration::from_secs(15)));
        assert_eq!(half(None), None);
        assert_eq!(half(Some(Duration::ZERO)), None);
        assert_eq!(half(Some(Duration::from_micros(u64::MAX))), None);
    }
}
