//! The sockets that systemd passes, told apart by name; sd_listen_fds(3).
//!
//! The order of the descriptors differs between versions of systemd, so only their names in
//! `LISTEN_FDNAMES` say what they are for. [`take`] collects the names and the kinds of the
//! descriptors, and `plan`, which is pure, decides. A descriptor that does not fit stops the daemon
//! at start, where an operator sees it.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

/// A listening, non-blocking stream socket.
#[derive(Debug)]
pub enum Listener {
    /// IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

/// The descriptors that systemd passed, by purpose; all are close-on-exec.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listeners of the line and gob protocols.
    pub tcp: Vec<Listener>,
    /// Listeners for WebSocket.
    pub ws: Vec<Listener>,
    /// What an earlier process of the daemon left in the file descriptor store, with its names.
    pub stored: Vec<(String, OwnedFd)>,
    /// The names of unknown descriptors in the store. They have been closed; the store still has to
    /// drop them.
    pub unknown_fds: Vec<String>,
}

impl Passed {
    /// Whether there is no listener, so that the daemon has to bind its own.
    #[must_use]
    pub fn has_no_listener(&self) -> bool {
        self.tcp.is_empty() && self.ws.is_empty()
    }
}

/// Why the passed descriptors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// `LISTEN_FDNAMES` and `LISTEN_FDS` disagree, so no name can be trusted.
    #[error(
        "LISTEN_FDNAMES has {names} names for the {descriptors} descriptors of LISTEN_FDS: \
         a program that passes sockets must set both for this process, as systemd does, or neither"
    )]
    Count {
        /// How many names there are.
        names: usize,
        /// How many descriptors there are.
        descriptors: usize,
    },
    /// The name does not say what the socket is for.
    #[error(
        "passed descriptor {position} has the name {name:?}, which is neither tcp nor ws: \
         set FileDescriptorName=tcp or FileDescriptorName=ws in its .socket unit"
    )]
    Name {
        /// Its place in `LISTEN_FDS`, from 1.
        position: usize,
        /// Its name; empty if it has none.
        name: String,
    },
    /// The name is good, but the descriptor cannot accept sessions.
    #[error(
        "passed descriptor {position}, {name:?}, is {found}, not a listening stream socket: \
         its .socket unit needs ListenStream= and Accept=no"
    )]
    Unfit {
        /// Its place in `LISTEN_FDS`, from 1.
        position: usize,
        /// Its name.
        name: String,
        /// What it is.
        found: Found,
    },
    /// A system call on a passed descriptor failed.
    #[error("{operation} of passed descriptor {position}: {source}")]
    System {
        /// The failed operation.
        operation: &'static str,
        /// Its place in `LISTEN_FDS`, from 1.
        position: usize,
        /// Why it failed.
        source: io::Error,
    },
}

/// What a passed descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A socket of a known family and type.
    Socket {
        /// Its address family.
        family: Family,
        /// Its type.
        kind: Kind,
        /// Whether it has been through listen(2); `SO_ACCEPTCONN`, socket(7).
        listening: bool,
    },
    /// A socket of an unknown family or type.
    OtherSocket,
    /// A pipe or FIFO.
    Pipe,
    /// A regular file, directory or device.
    File,
    /// An epoll, event, timer or memory descriptor, or one that cannot be looked at.
    Anonymous,
    /// Nothing: the number is not open.
    Closed,
}

/// The known address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 or IPv6; for a stream socket, TCP.
    Inet,
    /// ip(7)'s sibling on one host, unix(7).
    Unix,
    /// A socket between a virtual machine and its host, vsock(7).
    Vsock,
    /// A socket to the kernel, netlink(7).
    Netlink,
}

/// The known socket types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    SeqPacket,
    /// `SOCK_RAW`.
    Raw,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, kind, listening) = match *self {
            Self::Socket { family, kind, listening } => (family, kind, listening),
            Self::OtherSocket => return f.write_str("a socket of another family"),
            Self::Pipe => return f.write_str("a pipe"),
            Self::File => return f.write_str("a file"),
            Self::Anonymous => return f.write_str("no socket"),
            Self::Closed => return f.write_str("not open"),
        };
        let family = match family {
            Family::Inet => "IP",
            Family::Unix => "Unix",
            Family::Vsock => "vsock",
            Family::Netlink => "netlink",
        };
        let (kind, connects) = match kind {
            Kind::Stream => ("stream", true),
            Kind::Datagram => ("datagram", false),
            Kind::SeqPacket => ("seqpacket", true),
            Kind::Raw => ("raw", false),
        };
        let state = match (connects, listening) {
            (true, true) => " that listens",
            (true, false) => " that does not listen",
            (false, _) => "",
        };
        write!(f, "a socket of family {family} and type {kind}{state}")
    }
}

/// What a passed descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Tcp,
    Ws,
    Stored,
    /// From the store, and unknown.
    Unknown,
}

/// Takes the descriptors that systemd passed to this process, if any.
///
/// Call this first: `listenfd` removes `LISTEN_PID` and `LISTEN_FDS` from the environment, which is
/// sound only in a process with one thread, and a descriptor opened earlier could have a number
/// that `LISTEN_FDS` announces but nobody passed.
///
/// # Errors
///
/// If the number of names is wrong, if a name is unknown, or if a descriptor does not fit its name.
/// All descriptors taken until then are closed.
pub fn take() -> Result<Passed, SocketError> {
    let names = std::env::var_os("LISTEN_FDNAMES").map(|n| n.to_string_lossy().into_owned());
    let mut listen_fd = ListenFd::from_env();
    let count = listen_fd.len();
    if count == 0 {
        // Nothing was passed, or it was passed to another process whose environment this one
        // inherited. The names mean nothing then.
        return Ok(Passed::default());
    }
    let names = names_of(names.as_deref(), count)?;
    let mut descriptors = Vec::new();
    for index in 0..count {
        descriptors.push(look(&mut listen_fd, index)?);
    }
    let found: Vec<Found> = descriptors.iter().map(|(found, _)| *found).collect();
    let uses = plan(&names, &found)?;

    let mut passed = Passed::default();
    for (index, (name, (found, descriptor))) in names.into_iter().zip(descriptors).enumerate() {
        if uses[index] == Use::Unknown {
            match descriptor {
                Taken::Socket(socket) => drop(socket),
                // This fails only if it is closed already.
                Taken::Other(number) => drop(nix::unistd::close(number)),
                Taken::Nothing => {}
            }
            passed.unknown_fds.push(name);
            continue;
        }
        // `plan` accepts only sockets, and `look` owns each socket that it recognizes.
        let Taken::Socket(descriptor) = descriptor else {
            let position = index + 1;
            return Err(SocketError::Unfit { position, name, found });
        };
        match uses[index] {
            Use::Tcp => passed.tcp.push(listener(descriptor, found, index)?),
            Use::Ws => passed.ws.push(listener(descriptor, found, index)?),
            Use::Stored => passed.stored.push((name, descriptor)),
            Use::Unknown => unreachable!("unknown descriptors have been closed"),
        }
    }
    Ok(passed)
}

/// Splits `LISTEN_FDNAMES`; without it, all `count` descriptors have no name.
fn names_of(names: Option<&str>, count: usize) -> Result<Vec<String>, SocketError> {
    let Some(names) = names else {
        return Ok(vec![String::new(); count]);
    };
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() == count { Ok(names) } else { Err(SocketError::Count { names: names.len(), descriptors: count }) }
}

/// Decides what each descriptor is for, by its name and its kind.
///
/// If only one descriptor is not from the store, it needs no name: it is for TCP.
fn plan(names: &[String], found: &[Found]) -> Result<Vec<Use>, SocketError> {
    let from_unit = |(name, found): &(&String, &Found)| !is_stored(name) && !only_stored(**found);
    let single = names.iter().zip(found).filter(from_unit).count() == 1;
    let mut uses = Vec::new();
    for (index, (name, &found)) in names.iter().zip(found).enumerate() {
        let position = index + 1;
        let name = name.clone();
        let purpose = match name.as_str() {
            "tcp" => Use::Tcp,
            "ws" => Use::Ws,
            stored if is_stored(stored) && is_pair(found) => Use::Stored,
            stored if is_stored(stored) => Use::Unknown,
            nameless if single && is_nameless(nameless) && !only_stored(found) => Use::Tcp,
            // Accept=yes: the store gives its descriptors other names (sd_listen_fds(3)).
            "" | "unknown" | "connection" if is_connection(found) => {
                return Err(SocketError::Unfit { position, name, found });
            }
            _ if only_stored(found) => Use::Unknown,
            _ => return Err(SocketError::Name { position, name }),
        };
        if !matches!(purpose, Use::Stored | Use::Unknown) && !accepts(found) {
            return Err(SocketError::Unfit { position, name, found });
        }
        uses.push(purpose);
    }
    Ok(uses)
}

/// Whether a name is one from the store: the daemon's own, or `stored`, which systemd gives to a
/// descriptor that was stored without a name (sd_pid_notify_with_fds(3)).
fn is_stored(name: &str) -> bool {
    name.starts_with("store") || name.starts_with("distrilock-store")
}

/// Whether it is an end of the pair that the daemon stores (`store`).
fn is_pair(found: Found) -> bool {
    matches!(found, Found::Socket { family: Family::Unix, kind: Kind::SeqPacket, listening: false })
}

/// Whether no .socket unit passes such a descriptor (systemd.socket(5)), so that it can only come
/// from the store.
fn only_stored(found: Found) -> bool {
    match found {
        Found::Socket { kind, listening, .. } => matches!(kind, Kind::Stream | Kind::SeqPacket) && !listening,
        found => found == Found::File || found == Found::Anonymous,
    }
}

/// Whether it is a connected stream socket, as a .socket unit with `Accept=yes` passes it.
fn is_connection(found: Found) -> bool {
    matches!(found, Found::Socket { kind: Kind::Stream, listening: false, .. })
}

/// Whether nobody gave the descriptor a name. It is then called `unknown` if the environment has no
/// names (sd_listen_fds_with_names(3)), or by its unit if that has no `FileDescriptorName=`
/// (systemd.socket(5)).
fn is_nameless(name: &str) -> bool {
    name.is_empty() || name == "unknown" || name.ends_with(".socket")
}

/// Whether it accepts stream connections. A connection, such as one from the store, has the same
/// family and type, but does not listen.
fn accepts(found: Found) -> bool {
    matches!(found, Found::Socket { family: Family::Inet | Family::Unix, kind: Kind::Stream, listening: true })
}

/// The sockets that systemd.socket(5) can create and that can be in a store, as `listenfd`
/// distinguishes them: its AF_INET includes AF_INET6.
const SOCKETS: [(libc::c_int, Family, libc::c_int, Kind); 11] = [
    (libc::AF_INET, Family::Inet, libc::SOCK_STREAM, Kind::Stream),
    (libc::AF_UNIX, Family::Unix, libc::SOCK_STREAM, Kind::Stream),
    (libc::AF_UNIX, Family::Unix, libc::SOCK_SEQPACKET, Kind::SeqPacket),
    (libc::AF_UNIX, Family::Unix, libc::SOCK_DGRAM, Kind::Datagram),
    (libc::AF_INET, Family::Inet, libc::SOCK_DGRAM, Kind::Datagram),
    (libc::AF_INET, Family::Inet, libc::SOCK_SEQPACKET, Kind::SeqPacket),
    (libc::AF_INET, Family::Inet, libc::SOCK_RAW, Kind::Raw),
    (libc::AF_VSOCK, Family::Vsock, libc::SOCK_STREAM, Kind::Stream),
    (libc::AF_VSOCK, Family::Vsock, libc::SOCK_DGRAM, Kind::Datagram),
    (libc::AF_NETLINK, Family::Netlink, libc::SOCK_RAW, Kind::Raw),
    (libc::AF_NETLINK, Family::Netlink, libc::SOCK_DGRAM, Kind::Datagram),
];

/// A passed descriptor, owned if it is a socket.
enum Taken {
    Socket(OwnedFd),
    Other(libc::c_int),
    Nothing,
}

/// Finds out what the descriptor at `index` is, and takes it, close-on-exec, if it is a socket.
///
/// `listenfd` gives an owned descriptor only to a caller who names its kind, so this tries one kind
/// after the other; a refusal leaves the descriptor in place.
fn look(listen_fd: &mut ListenFd, index: usize) -> Result<(Found, Taken), SocketError> {
    for (domain, family, number, kind) in SOCKETS {
        let Ok(Some(socket)) = listen_fd.take_custom::<OwnedFd>(index, domain, number, "") else {
            continue;
        };
        let listening = getsockopt(&socket, sockopt::AcceptConn).map_err(|errno| SocketError::System {
            operation: "getsockopt(SO_ACCEPTCONN)",
            position: index + 1,
            source: errno.into(),
        })?;
        let found = Found::Socket { family, kind, listening };
        return Ok((found, Taken::Socket(socket)));
    }
    let number = listen_fd.take_raw_fd(index).map_err(|source| SocketError::System {
        operation: "taking",
        position: index + 1,
        source,
    })?;
    Ok(number.map_or((Found::Closed, Taken::Nothing), |number| (name_other(number), Taken::Other(number))))
}

/// What an open file is that is not a known socket, by its number alone; proc_pid_fd(5).
fn name_other(number: libc::c_int) -> Found {
    let file = std::fs::metadata(format!("/proc/self/fd/{number}"));
    match file.map(|file| file.file_type()) {
        Ok(kind) if kind.is_socket() => Found::OtherSocket,
        Ok(kind) if kind.is_fifo() => Found::Pipe,
        Ok(kind) if kind.is_file() || kind.is_dir() => Found::File,
        Ok(kind) if kind.is_char_device() || kind.is_block_device() => Found::File,
        Ok(_) => Found::Anonymous,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Closed,
        Err(_) => Found::Anonymous,
    }
}

/// Makes a non-blocking listener of a socket that `plan` accepted.
fn listener(socket: OwnedFd, found: Found, index: usize) -> Result<Listener, SocketError> {
    let unix = matches!(found, Found::Socket { family: Family::Unix, .. });
    let (listener, set) = if unix {
        let socket = UnixListener::from(socket);
        let set = socket.set_nonblocking(true);
        (Listener::Unix(socket), set)
    } else {
        let socket = TcpListener::from(socket);
        let set = socket.set_nonblocking(true);
        (Listener::Tcp(socket), set)
    };
    set.map(|()| listener).map_err(|source| SocketError::System {
        operation: "fcntl(O_NONBLOCK)",
        position: index + 1,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Found = socket(Family::Inet, Kind::Stream, true);
    const UNIX: Found = socket(Family::Unix, Kind::Stream, true);
    const CONNECTION: Found = socket(Family::Inet, Kind::Stream, false);
    const PAIR: Found = socket(Family::Unix, Kind::SeqPacket, false);

    const fn socket(family: Family, kind: Kind, listening: bool) -> Found {
        Found::Socket { family, kind, listening }
    }

    fn decide(names: Option<&str>, found: &[Found]) -> Result<Vec<Use>, String> {
        names_of(names, found.len()).and_then(|names| plan(&names, found)).map_err(|fault| fault.to_string())
    }

    #[test]
    fn names_decide_and_order_does_not() {
        // Two sockets for each front, mixed, as different versions of systemd order them.
        let found = [UNIX, TCP, TCP, UNIX];
        assert_eq!(decide(Some("ws:tcp:ws:tcp"), &found), Ok(vec![Use::Ws, Use::Tcp, Use::Ws, Use::Tcp]));
    }

    #[test]
    fn a_single_socket_without_a_name_is_tcp() {
        // No names at all, an empty one, systemd's two stand-ins for a name.
        for names in [None, Some(""), Some("unknown"), Some("distrilock.socket"), Some("own.socket")] {
            assert_eq!(decide(names, &[TCP]), Ok(vec![Use::Tcp]), "{names:?}");
            assert_eq!(decide(names, &[UNIX]), Ok(vec![Use::Tcp]), "{names:?}");
        }
    }

    #[test]
    fn a_socket_without_a_name_is_single_beside_the_store() {
        // A restart with an fd store, of a unit whose socket was never given a name.
        assert_eq!(
            decide(Some("store-0:distrilock.socket:stored"), &[PAIR, TCP, PAIR]),
            Ok(vec![Use::Stored, Use::Tcp, Use::Stored])
        );
        assert_eq!(decide(Some("distrilock-store-1"), &[PAIR]), Ok(vec![Use::Stored]));
    }

    #[test]
    fn one_of_several_without_a_name_is_refused() {
        // Nobody can tell which front the second socket is for.
        for (names, position, name) in [
            (Some("tcp:"), 2, ""),
            (Some("unknown:ws"), 1, "unknown"),
            (Some("ws:distrilock.socket"), 2, "distrilock.socket"),
            (None, 1, ""),
        ] {
            let fault = decide(names, &[TCP, TCP]).unwrap_err();
            assert!(fault.starts_with(&format!("passed descriptor {position} has the name {name:?}")), "{fault}");
            assert!(fault.contains("FileDescriptorName=tcp"), "{fault}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_remedy() {
        // A typing error in a unit, one of them with a terminal's control character.
        assert_eq!(
            decide(Some("tcp:wss"), &[TCP, TCP]).unwrap_err(),
            "passed descriptor 2 has the name \"wss\", which is neither tcp nor ws: \
             set FileDescriptorName=tcp or FileDescriptorName=ws in its .socket unit"
        );
        for name in ["TCP", "tcp ", "connection", "http", "web\u{1b}[2J"] {
            let fault = decide(Some(name), &[TCP]).unwrap_err();
            assert!(fault.contains(&format!("{name:?}")), "{fault}");
            assert!(!fault.contains('\u{1b}'), "{fault}");
        }
    }

    #[test]
    fn names_and_number_must_agree() {
        // One name too few, one too many, and none for three.
        for (names, count) in [("tcp", 2), ("tcp:ws:ws", 2), ("", 3)] {
            let fault = decide(Some(names), &vec![TCP; count]).unwrap_err();
            assert!(fault.starts_with("LISTEN_FDNAMES has "), "{fault}");
        }
    }

    #[test]
    fn a_connection_is_never_taken_for_a_listener() {
        // A stored connection that lost its name, or has one that a listener can have.
        for names in [Some("distrilock.socket"), Some("store-7")] {
            assert_eq!(decide(names, &[CONNECTION]), Ok(vec![Use::Unknown]));
        }
        // One that systemd has accepted, with Accept=yes in the unit, is not ignored in silence.
        for names in [None, Some(""), Some("unknown"), Some("connection"), Some("tcp"), Some("ws")] {
            let fault = decide(names, &[CONNECTION]).unwrap_err();
            assert!(fault.contains("is a socket of family IP and type stream that does not listen"), "{fault}");
        }
    }

    #[test]
    fn what_is_not_a_stream_socket_is_refused_by_what_it_is() {
        // Everything else that can be behind a good name.
        for (found, text) in [
            (socket(Family::Inet, Kind::Datagram, false), "is a socket of family IP and type datagram, not"),
            (
                socket(Family::Unix, Kind::SeqPacket, true),
                "is a socket of family Unix and type seqpacket that listens, not",
            ),
            (
                socket(Family::Vsock, Kind::Stream, true),
                "is a socket of family vsock and type stream that listens, not",
            ),
            (socket(Family::Netlink, Kind::Raw, false), "is a socket of family netlink and type raw, not"),
            (Found::OtherSocket, "is a socket of another family, not"),
            (Found::Pipe, "is a pipe, not"),
            (Found::File, "is a file, not"),
            (Found::Anonymous, "is no socket, not"),
            (Found::Closed, "is not open, not"),
        ] {
            let fault = decide(Some("tcp:ws"), &[TCP, found]).unwrap_err();
            assert!(fault.starts_with("passed descriptor 2, \"ws\", "), "{fault}");
            assert!(fault.contains(text), "{fault}");
        }
    }

    #[test]
    fn unknown_fds_in_the_store_do_not_stop_the_daemon() {
        // Descriptors that only the store can hold but this daemon did not put there, and ones that
        // a .socket unit can pass.
        for found in [Found::Pipe, Found::File, Found::Anonymous, CONNECTION, TCP] {
            assert_eq!(decide(Some("tcp:store"), &[TCP, found]), Ok(vec![Use::Tcp, Use::Unknown]));
        }
        for found in [Found::File, Found::Anonymous, CONNECTION, PAIR] {
            assert_eq!(decide(Some("tcp:other"), &[TCP, found]), Ok(vec![Use::Tcp, Use::Unknown]));
        }
        for found in [Found::Pipe, TCP, socket(Family::Inet, Kind::Datagram, false)] {
            assert!(decide(Some("tcp:other"), &[TCP, found]).unwrap_err().contains("the name \"other\""));
        }
    }
}
