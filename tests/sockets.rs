//! Sockets passed to a real process, as sd_listen_fds(3) describes.
//!
//! The test runs itself again through a shell, which puts the descriptors in their places.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

use distrilock::systemd::sockets::{self, Listener};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Set in the process that takes the sockets.
const INSIDE: &str = "DISTRILOCK_TEST_INSIDE";

const TEST: &str = "a_process_takes_its_sockets";

/// Passes three descriptors, with `$1` for LISTEN_FDS, `$2` for LISTEN_PID (empty: the process's
/// own), and `$3` for the file that stdout goes to.
const SCRIPT: &str = "export LISTEN_FDS=\"$1\" LISTEN_PID=\"${2:-$$}\" && \
    exec \"$0\" --exact --nocapture --test-threads=1 \"$4\" \
    3<&0 4<&1 5<&2 0</dev/null >\"$3\" 2>&1";

/// What a process with these three descriptors prints about those that it took.
fn taken_by_child(names: Option<&str>, count: &str, pid: &str, passed: [OwnedFd; 3]) -> String {
    let out = tempfile::NamedTempFile::new().unwrap();
    let [first, second, third] = passed;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]);
    command.arg(std::env::current_exe().unwrap());
    command.args([count, pid]).arg(out.path()).arg(TEST);
    command.env(INSIDE, "1").env_remove("LISTEN_FDNAMES");
    if let Some(names) = names {
        command.env("LISTEN_FDNAMES", names);
    }
    command.stdin(first).stdout(second).stderr(third);
    let status = command.status().unwrap();
    let text = std::fs::read_to_string(out.path()).unwrap();
    assert!(status.success(), "{status}\n{text}");
    let lines: Vec<&str> = text.lines().filter_map(|l| l.split_once("took ")).map(|l| l.1).collect();
    lines.join(", ")
}

/// Takes the sockets, checks the properties that all share, and prints what they are.
fn take_and_tell() {
    let passed = match sockets::take() {
        Ok(passed) => passed,
        Err(fault) => return println!("took {fault}"),
    };
    for (front, listeners) in [("tcp", &passed.tcp), ("ws", &passed.ws)] {
        for listener in listeners {
            match listener {
                Listener::Tcp(listener) => {
                    check(listener);
                    assert_eq!(would_block(listener.accept()), Some(true));
                    println!("took {front} {}", listener.local_addr().unwrap());
                }
                Listener::Unix(listener) => {
                    check(listener);
                    assert_eq!(would_block(listener.accept()), Some(true));
                    println!("took {front} unix");
                }
            }
        }
    }
    for (name, descriptor) in &passed.stored {
        check(descriptor);
        println!("took stored {name}");
    }
    for name in &passed.unknown_fds {
        println!("took stranger {name}");
    }
    if passed.has_no_listener() {
        println!("took no listener");
    }
}

fn check(descriptor: impl AsFd) {
    let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
}

fn would_block<T>(result: std::io::Result<T>) -> Option<bool> {
    let error = result.err()?;
    Some(error.kind() == std::io::ErrorKind::WouldBlock)
}

fn tcp(address: &str) -> (OwnedFd, String) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener.into(), address)
}

fn unix() -> OwnedFd {
    let dir = tempfile::tempdir().unwrap();
    UnixListener::bind(dir.path().join("s")).unwrap().into()
}

/// An end of the pair that the daemon stores.
fn pair() -> OwnedFd {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap().0
}

fn datagrams() -> OwnedFd {
    UnixDatagram::pair().unwrap().0.into()
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn a_process_takes_its_sockets() {
    // A process gets IPv4, IPv6 and Unix sockets, stored ones, ones meant for another process, and
    // wrong ones.
    if std::env::var_os(INSIDE).is_some() {
        return take_and_tell();
    }
    let (four, four_address) = tcp("127.0.0.1:0");
    let (six, six_address) = tcp("[::1]:0");
    assert_eq!(
        taken_by_child(Some("ws:tcp:ws"), "3", "", [six, four, unix()]),
        format!("tcp {four_address}, ws {six_address}, ws unix")
    );

    let (four, address) = tcp("127.0.0.1:0");
    assert_eq!(
        taken_by_child(Some("store-a:distrilock.socket:stored"), "3", "", [pair(), four, pair()]),
        format!("tcp {address}, stored store-a, stored stored")
    );
    let (four, address) = tcp("127.0.0.1:0");
    assert_eq!(
        taken_by_child(Some("store-a:distrilock.socket:other"), "3", "", [datagrams(), four, null()]),
        format!("tcp {address}, stranger store-a, stranger other")
    );
    let (four, address) = tcp("127.0.0.1:0");
    assert_eq!(taken_by_child(None, "1", "", [four, null(), null()]), format!("tcp {address}"));

    // The environment was inherited from another process.
    assert_eq!(taken_by_child(Some("tcp:ws:ws"), "3", "1", [unix(), unix(), unix()]), "no listener");
    refuses_wrong_ones();
}

fn refuses_wrong_ones() {
    let (listener, address) = tcp("127.0.0.1:0");
    let connection = TcpStream::connect(address).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    for (names, count, passed, fault) in [
        ("tcp:ws:http", "3", [listener, unix(), unix()], "passed descriptor 3 has the name \"http\""),
        (
            "tcp:ws:ws",
            "3",
            [unix(), connection.into(), unix()],
            "passed descriptor 2, \"ws\", is a socket of family IP and type stream that does not",
        ),
        (
            "tcp:ws",
            "2",
            [unix(), datagrams(), null()],
            "passed descriptor 2, \"ws\", is a socket of family Unix and type datagram, not",
        ),
        ("tcp", "1", [null(), null(), null()], "passed descriptor 1, \"tcp\", is a file, not"),
        ("tcp", "1", [pipe.into(), null(), null()], "passed descriptor 1, \"tcp\", is a pipe, not"),
        ("tcp:ws", "3", [unix(), unix(), unix()], "LISTEN_FDNAMES has 2 names for the 3"),
    ] {
        let told = taken_by_child(Some(names), count, "", passed);
        assert!(told.starts_with(fault), "{told}");
    }
}
