//! [`Manager`] stands in for the service manager: it keeps the descriptors that the daemon stores,
//! and passes them to the next process.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

/// How long it waits for a message from the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The service manager's side.
pub(crate) struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
    stored: Vec<OwnedFd>,
    listener: TcpListener,
    child: Option<Child>,
}

impl Manager {
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().expect("a place");
        fs::create_dir(folder.path().join("locks")).expect("a fresh folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a fresh socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        rustix::net::listen(&listener, BACKLOG).expect("it listens");
        let mut manager = Self { folder, socket, stored: Vec::new(), listener, child: None };
        manager.run("");
        manager
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().expect("it is bound").to_string()
    }

    /// The lock directory.
    pub(crate) fn locks(&self) -> PathBuf {
        self.folder.path().join("locks")
    }

    /// Runs a process of the daemon, after a line of shell, until it is ready.
    pub(crate) fn run(&mut self, script: &str) {
        self.child = Some(self.spawn(script));
        while !self.hear().lines().any(|line| line == "READY=1") {}
    }

    /// Starts a process of the daemon, after a line of shell, without waiting for it.
    pub(crate) fn spawn(&self, script: &str) -> Child {
        let copy = |end: &OwnedFd| end.try_clone().expect("there are descriptors");
        let mut descriptors = vec![OwnedFd::from(self.listener.try_clone().expect("there are descriptors"))];
        descriptors.extend(self.stored.iter().map(copy));
        let names = ["tcp", "store", "store"][..descriptors.len()].join(":");
        let mappings = (3..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("export LISTEN_PID=$$\n{script}\nexec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_distrilockd")).arg("-d").arg(self.locks()).args(["--log", "warn"]);
        command.env("LISTEN_FDNAMES", &names).env("LISTEN_FDS", names.split(':').count().to_string());
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).env_remove("JOURNAL_STREAM");
        command.fd_mappings(mappings.collect()).expect("each descriptor has its number");
        command.spawn().expect("the daemon runs")
    }

    /// Receives one message. Descriptors to be stored are kept; all others are closed, which
    /// answers a barrier.
    fn hear(&mut self) -> String {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut text = [0; 4096];
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let bytes = got.expect("the daemon speaks in time").bytes;
        let text = String::from_utf8_lossy(&text[..bytes]).into_owned();
        let stores = text.lines().any(|line| line == "FDSTORE=1");
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.stored.extend(descriptors.filter(|_| stores));
            }
        }
        text
    }

    /// Makes the process hand everything to the next one.
    pub(crate) fn leave(&mut self) {
        let mut child = self.signal(Signal::SIGUSR2);
        // Its messages are read to the end, because it waits for the answer to the last one.
        while !self.hear().lines().any(|line| line == "BARRIER=1") {}
        assert!(child.wait().expect("it is our child").success(), "the daemon hands over");
    }

    /// Stops the process.
    pub(crate) fn stop(mut self) {
        let mut child = self.signal(Signal::SIGTERM);
        assert!(child.wait().expect("it is our child").success(), "the daemon stops");
    }

    fn signal(&mut self, signal: Signal) -> Child {
        let child = self.child.take().expect("there is a process");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is our child");
        child
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
