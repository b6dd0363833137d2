//! Restarts with many sessions, each of which holds a lock: nothing may be lost, and how long does a client wait? This program stands in
//! for the service manager: it keeps what the daemon stores, and passes it to the next process.
//! `cargo bench --bench restart [-- --sessions N]`

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

const ROUNDS: usize = 5;
const SESSIONS: usize = 9000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The side of the service manager.
struct Manager {
    socket: UnixDatagram,
    stored: Vec<OwnedFd>,
    listener: TcpListener,
}

impl Manager {
    fn start(&mut self, folder: &Path) -> Child {
        let mut descriptors = vec![OwnedFd::from(self.listener.try_clone().expect("there are descriptors"))];
        descriptors.extend(self.stored.iter().map(|end| end.try_clone().expect("there are descriptors")));
        let names = ["tcp", "store", "store"][..descriptors.len()].join(":");
        let mappings = (3..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new("sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_distrilockd")]);
        command.arg("-d").arg(folder.join("locks")).args(["--log", "warn"]);
        command.env("LISTEN_FDNAMES", &names).env("LISTEN_FDS", names.split(':').count().to_string());
        command.env("NOTIFY_SOCKET", folder.join("notify")).env_remove("JOURNAL_STREAM");
        command.fd_mappings(mappings.collect()).expect("each descriptor has its number");
        let child = command.spawn().expect("the daemon runs");
        while !self.hear().lines().any(|line| line == "READY=1") {}
        child
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

    /// Replaces the daemon as systemd does.
    fn restart(&mut self, folder: &Path, child: &mut Child) {
        signal(child, Signal::SIGUSR2);
        // Its messages are read until it has gone: it waits for the answer to the last one.
        while !self.hear().lines().any(|line| line == "BARRIER=1") {}
        assert!(child.wait().expect("it is our child").success(), "the daemon hands over");
        *child = self.start(folder);
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("process numbers are small")), signal)
        .expect("it is our child");
}

fn say(session: &mut TcpStream, line: &str) {
    session.write_all(line.as_bytes()).and_then(|()| session.write_all(b"\n")).expect("the session lives");
}

fn hear(session: &mut TcpStream) -> String {
    let (mut line, mut byte) = (Vec::new(), [0; 256]);
    while !line.ends_with(b"\n") {
        let count = session.read(&mut byte).expect("the session lives");
        assert!(count > 0, "the session has ended");
        line.extend_from_slice(&byte[..count]);
    }
    String::from_utf8(line).expect("JSON is text")
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let wanted =
        words.iter().position(|word| word == "--sessions").and_then(|place| words.get(place + 1)?.parse().ok());
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map(|(_, hard)| hard).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit everybody may");
    let most = usize::try_from(hard / 2).unwrap_or(usize::MAX).saturating_sub(200);
    let count: usize = wanted.unwrap_or(SESSIONS).min(most);
    let scratch = tempfile::tempdir().expect("a place");
    let folder = scratch.path();
    fs::create_dir(folder.join("locks")).expect("a fresh folder");
    let socket = UnixDatagram::bind(folder.join("notify")).expect("a fresh socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    rustix::net::listen(&listener, 4096).expect("it listens");
    let address = listener.local_addr().expect("it is bound");
    let mut manager = Manager { socket, stored: Vec::new(), listener };
    let mut child = manager.start(folder);
    let mut sessions: Vec<TcpStream> = Vec::new();
    for number in 0..count {
        let mut session = TcpStream::connect(address).expect("the daemon listens");
        session.set_read_timeout(Some(PATIENCE)).and_then(|()| session.set_nodelay(true)).expect("it is a socket");
        say(&mut session, &format!(r#"{{"op":"acquire","lock":"lock{number}"}}"#));
        assert!(hear(&mut session).contains(r#""ok":true"#), "lock{number} is free");
        sessions.push(session);
    }
    println!("{count} sessions, each with a lock; {ROUNDS} restarts");
    let mut waits = Vec::new();
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        let took = std::thread::scope(|scope| {
            let restart = scope.spawn(|| {
                manager.restart(folder, &mut child);
                begun.elapsed()
            });
            let asked: Vec<Instant> = sessions
                .iter_mut()
                .map(|session| {
                    say(session, r#"{"op":"ping"}"#);
                    Instant::now()
                })
                .collect();
            for (session, asked) in sessions.iter_mut().zip(asked) {
                assert!(hear(session).contains(r#""ok":true"#), "a ping is answered");
                waits.push(asked.elapsed());
            }
            restart.join().expect("the restart succeeds")
        });
        let real = |(number, session): (usize, &mut TcpStream)| {
            say(session, &format!(r#"{{"op":"verify","lock":"lock{number}"}}"#));
            hear(session).contains(r#""ok":true"#)
        };
        let kept = sessions.iter_mut().enumerate().map(real).filter(|real| *real).count();
        println!("restart {round}: {took:.1?}; {kept} of {count} locks are real");
        assert_eq!(kept, count, "locks were lost");
    }
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    println!("a ping through a restart: median {:.1?}, p99 {:.1?}, longest {:.1?}", at(50), at(99), at(100));
    signal(&child, Signal::SIGTERM);
    assert!(child.wait().expect("it is our child").success(), "the daemon stops");
}
