//! Sessions go on in the next process: what can go wrong on the way. The test stands in for the service manager, which keeps what the
//! daemon stores, and passes it to the next process.

mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};

use command_fds::{CommandFdExt, FdMapping};
use nix::libc::F_WRLCK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use support::{BINARY, PATIENCE, V1, eventually, lock_file};
use tempfile::TempDir;

/// The side of the service manager.
struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
    stored: Vec<OwnedFd>,
    listener: TcpListener,
    child: Option<Child>,
}

impl Manager {
    fn start() -> Self {
        let folder = TempDir::new().expect("a place");
        fs::create_dir(folder.path().join("locks")).expect("a fresh folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a fresh socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let mut manager = Self { folder, socket, stored: Vec::new(), listener, child: None };
        manager.run("");
        manager
    }

    fn address(&self) -> String {
        self.listener.local_addr().expect("it is bound").to_string()
    }

    fn connect(&self) -> V1 {
        V1::connect(&self.address())
    }

    /// Runs a process of the daemon, after a line of shell, until it is ready.
    fn run(&mut self, script: &str) {
        let copy = |end: &OwnedFd| end.try_clone().expect("there are descriptors");
        let mut descriptors = vec![OwnedFd::from(self.listener.try_clone().expect("there are descriptors"))];
        descriptors.extend(self.stored.iter().map(copy));
        let names = ["tcp", "store", "store"][..descriptors.len()].join(":");
        let mappings = (3..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("export LISTEN_PID=$$\n{script}\nexec \"$0\" \"$@\"")).arg(BINARY);
        command.arg("-d").arg(self.folder.path().join("locks")).args(["--log", "warn"]);
        command.env("LISTEN_FDNAMES", &names).env("LISTEN_FDS", names.split(':').count().to_string());
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).env_remove("JOURNAL_STREAM");
        command.fd_mappings(mappings.collect()).expect("each descriptor has its number");
        self.child = Some(command.spawn().expect("the daemon runs"));
        while !self.hear().lines().any(|line| line == "READY=1") {}
    }

    /// One message; what is to be kept is kept, and all else that comes with it is closed, which answers a barrier.
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

    /// Has the process leave everything to the next one.
    fn leave(&mut self) {
        let mut child = self.child.take().expect("there is a process");
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGUSR2).expect("it is our child");
        // Its messages are read until it has gone: it waits for the answer to the last one.
        while !self.hear().lines().any(|line| line == "BARRIER=1") {}
        assert!(child.wait().expect("it is our child").success(), "the daemon hands over");
    }

    /// Whether another process sees the lock free.
    fn is_free(&self, lock: &str) -> bool {
        match File::options().write(true).open(self.folder.path().join(format!("locks/{lock}.lck"))) {
            Ok(file) => lock_file(&file, F_WRLCK),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
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

/// The next process may open fewer descriptors than there are: then every session ends and every lock is free, none stays held by
/// nobody, and the process after that takes over what it should.
#[test]
fn fewer_descriptors_than_before() {
    const SESSIONS: usize = 400;
    let mut manager = Manager::start();
    let lock = |number: usize| format!("lock{number}");
    let hold = |number: usize| {
        let mut session = manager.connect();
        session.acquire(&lock(number));
        session
    };
    let sessions: Vec<V1> = (0..SESSIONS).map(hold).collect();
    manager.leave();
    manager.run("ulimit -n 200");
    for (number, mut session) in sessions.into_iter().enumerate() {
        assert!(session.closed().is_empty(), "session {number} ends");
        // Not at once: the new process locks what it finds unused, to delete it.
        eventually(&format!("the lock of session {number} is free"), || manager.is_free(&lock(number)));
    }
    let mut session = manager.connect();
    session.acquire("later");
    manager.leave();
    manager.run("");
    assert!(!manager.is_free("later"));
    session.release("later");
}
