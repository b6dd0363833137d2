//! What a daemon could find from the previous process but does not know, each with the lock of a
//! file.

use std::env;
use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, sendmsg, socketpair, sockopt,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::guest::DIRECTORY;

/// Run once by the service itself (ExecStartPost=): puts unknown descriptors into its store. The
/// first are of a kind that the daemon never had; the others are the two ends of a hand-over that
/// was cut off after its beginning. Returns true if that is done, now or by an earlier start.
pub(crate) fn in_the_store() -> bool {
    if File::create_new(format!("{DIRECTORY}/left")).is_err() {
        return true;
    }
    let (connection, _peer) = UnixStream::pair().expect("the system has sockets");
    let file = locked("stranger");
    store("FDSTORE=1\nFDNAME=stranger\nFDPOLL=0", &[file.as_raw_fd(), connection.as_raw_fd()]);

    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (one, other): (OwnedFd, OwnedFd) = pair.expect("the system has sockets");
    let file = locked("cut");
    let carried = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&carried)];
    let words = [IoSlice::new(b"begin")];
    sendmsg::<()>(one.as_raw_fd(), &words, &rights, MsgFlags::empty(), None).expect("there is room");
    store("FDSTORE=1\nFDNAME=store\nFDPOLL=0", &[one.as_raw_fd(), other.as_raw_fd()]);
    true
}

/// A lock file, locked in the daemon's way.
fn locked(lock: &str) -> File {
    let path = format!("{DIRECTORY}/{lock}.lck");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .expect("we are the daemon's user");
    let whole = libc::flock {
        l_type: libc::F_WRLCK.try_into().expect("a small number"),
        l_whence: libc::SEEK_SET.try_into().expect("a small number"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)).expect("nobody else has it");
    file
}

fn store(message: &str, descriptors: &[RawFd]) {
    let path = env::var("NOTIFY_SOCKET").expect("systemd starts this");
    let socket = UnixDatagram::unbound().expect("the system has sockets");
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(path.as_str()),
    };
    let rights = [ControlMessage::ScmRights(descriptors)];
    let words = [IoSlice::new(message.as_bytes())];
    let sent = sendmsg(socket.as_raw_fd(), &words, &rights, MsgFlags::empty(), Some(&address.expect("an address")));
    sent.expect("systemd hears");
}

/// Writes into the daemon's own pair what a process would leave that was killed in the middle, or
/// that has an unknown version: messages with the locks of files. The daemon keeps the pair open,
/// so this can get it from there (pidfd_getfd(2)).
pub(crate) fn in_the_queue(pid: i32, messages: &[(&[u8], Option<&str>)]) {
    let process = rustix::process::Pid::from_raw(pid).expect("it runs");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("it runs");
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let copies = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    let is_end = |copy: &OwnedFd| getsockopt(copy, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket);
    let ends: Vec<OwnedFd> = copies.filter(is_end).collect();
    assert_eq!(ends.len(), 2, "the daemon's pair");
    for (bytes, lock) in messages {
        let file = lock.map(locked);
        let carried: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&carried)];
        let rights = if carried.is_empty() { &[][..] } else { &rights[..] };
        let sent = sendmsg::<()>(ends[0].as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None);
        sent.expect("there is room");
    }
}
