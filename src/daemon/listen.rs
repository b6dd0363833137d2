//! The listeners: those that systemd passes, and those that the command line asks for.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};

use super::StartError;
use crate::front::{Listening, Transport};
use crate::settings::{Address, Settings};
use crate::systemd::sockets::{Listener, Passed};

/// How many connections may wait to be accepted: as many as systemd asks for (systemd.socket(5),
/// Backlog=).
const BACKLOG: i32 = 4096;

/// The listeners of both transports.
pub(super) struct Listeners {
    pub(super) tcp: Vec<Listener>,
    pub(super) ws: Vec<Listener>,
    /// The Unix sockets that this process has made.
    pub(super) made: Vec<MadeSocket>,
}

/// Listeners that the runtime watches.
pub(super) struct Registered {
    pub(super) listening: Vec<(Transport, Listening)>,
    /// The Unix sockets that this process has made.
    pub(super) made: Vec<MadeSocket>,
}

/// A Unix socket that this process has made, by its device and inode.
#[derive(Debug)]
pub(super) struct MadeSocket {
    path: PathBuf,
    id: (u64, u64),
}

impl MadeSocket {
    fn at(path: &Path) -> io::Result<Self> {
        let socket = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), id: (socket.dev(), socket.ino()) })
    }

    /// Removes the socket, unless another one has taken its place.
    pub(super) fn remove(&self) {
        if Self::at(&self.path).is_ok_and(|now| now.id == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

impl Listeners {
    /// Adds to the passed sockets those of the command line, or the default ones if there are
    /// neither.
    pub(super) fn open(settings: &Settings, passed: Passed) -> Result<Self, StartError> {
        let named = !settings.tcp.is_empty() || !settings.ws.is_empty();
        let standalone = passed.has_no_listener() && !named;
        let mut listeners = Self { tcp: passed.tcp, ws: passed.ws, made: Vec::new() };
        let default = |port: u16| standalone.then(|| Address::Tcp(([127, 0, 0, 1], port).into()));
        for address in settings.tcp.iter().cloned().chain(default(40_800)) {
            let listener = bind(&address, "tcp")?;
            listeners.tcp.push(listener);
            listeners.note(address)?;
        }
        for address in settings.ws.iter().cloned().chain(default(40_801)) {
            let listener = bind(&address, "ws")?;
            listeners.ws.push(listener);
            listeners.note(address)?;
        }
        Ok(listeners)
    }

    fn note(&mut self, address: Address) -> Result<(), StartError> {
        if let Address::Unix(path) = &address {
            match MadeSocket::at(path) {
                Ok(made) => self.made.push(made),
                Err(error) => return Err(StartError::Listen { address, error }),
            }
        }
        Ok(())
    }

    /// Has the current runtime watch them.
    pub(super) fn register(self) -> io::Result<Registered> {
        let all = [(Transport::Stream, self.tcp), (Transport::WebSocket, self.ws)];
        let each = all.into_iter().flat_map(|(transport, some)| some.into_iter().map(move |one| (transport, one)));
        let listening = each.map(|(transport, listener)| Ok((transport, Listening::new(listener)?)));
        Ok(Registered { listening: listening.collect::<io::Result<_>>()?, made: self.made })
    }
}

/// Binds an address, and prints it: with port 0 only the kernel knows the port.
fn bind(address: &Address, transport: &str) -> Result<Listener, StartError> {
    let (listener, bound) = match address {
        Address::Tcp(ip) => bind_tcp(*ip)
            .and_then(|listener| {
                // The standard library asks for 128. While descriptors are short, more may have to
                // wait.
                socket::listen(&listener, Backlog::new(BACKLOG)?)?;
                Ok((listener.local_addr()?, listener))
            })
            .map(|(bound, listener)| (Listener::Tcp(listener), Address::Tcp(bound))),
        Address::Unix(path) => bind_unix(path).map(|listener| (Listener::Unix(listener), Address::Unix(path.clone()))),
    }
    .map_err(|error| StartError::Listen { address: address.clone(), error })?;
    // Nobody has to read it.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{transport} {bound}").and_then(|()| stdout.flush());
    Ok(listener)
}

/// Binds an IP address. Every address means IPv4 as well, whatever the sysctl net.ipv6.bindv6only
/// says, and IPv4 alone on a host without IPv6 (ipv6(7)).
fn bind_tcp(ip: SocketAddr) -> io::Result<TcpListener> {
    if ip.ip() != Ipv6Addr::UNSPECIFIED {
        return TcpListener::bind(ip);
    }
    let has_no_ipv6 = |error: &io::Error| matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL));
    match bind_both(ip) {
        Err(error) if has_no_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, ip.port())),
        bound => bound,
    }
}

fn bind_both(ip: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    // As the standard library does: connections of an earlier daemon may still be closing.
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(ip))?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

/// Binds a Unix socket, and replaces one that a killed daemon left, at which nobody answers.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if is_socket && UnixStream::connect(path).err().as_ref().is_some_and(refused) {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            } else {
                Err(error)
            }
        }
        bound => bound,
    }
}
