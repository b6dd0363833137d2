//! Run by the service itself, once (ExecStartPost=): puts into its store of descriptors what a daemon could find there and not
//! know, each with the lock of a file.

use std::env;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair};

use crate::guest::DIRECTORY;

/// The first descriptors are of a kind that the daemon has never had; the others are the two ends of a hand-over that was cut off
/// after its beginning. True if it is done, now or by an earlier start.
pub(crate) fn in_the_store() -> bool {
    if File::create_new(format!("{DIRECTORY}/left")).is_err() {
        return true;
    }
    let address = SocketAddr::from_abstract_name("distrilock-test-stranger").expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("nobody else has it");
    let file = locked("stranger");
    store("FDSTORE=1\nFDNAME=stranger\nFDPOLL=0", &[file.as_raw_fd(), listener.as_raw_fd()]);

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

/// A lock file, locked as the daemon does it.
fn locked(lock: &str) -> File {
    let path = format!("{DIRECTORY}/{lock}.lck");
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("we are the daemon's user");
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
