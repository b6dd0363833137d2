//! The listeners: those that systemd passes, and those that the command line asks for.

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{self, Backlog};

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
}

impl Listeners {
    /// Adds to the passed sockets those of the command line, or the default ones if there are
    /// neither.
    pub(super) fn open(settings: &Settings, passed: Passed) -> Result<Self, StartError> {
        let named = !settings.tcp.is_empty() || !settings.ws.is_empty();
        let standalone = passed.has_no_listener() && !named;
        let mut listeners = Self { tcp: passed.tcp, ws: passed.ws };
        let default = |port: u16| standalone.then(|| Address::Tcp(([127, 0, 0, 1], port).into()));
        for address in settings.tcp.iter().cloned().chain(default(40_800)) {
            listeners.tcp.push(bind(address, "tcp")?);
        }
        for address in settings.ws.iter().cloned().chain(default(40_801)) {
            listeners.ws.push(bind(address, "ws")?);
        }
        Ok(listeners)
    }
    /// Has the current runtime watch them.
    pub(super) fn register(self) -> io::Result<Vec<(Transport, Listening)>> {
        let all = [(Transport::Stream, self.tcp), (Transport::WebSocket, self.ws)];
        let each = all.into_iter().flat_map(|(transport, some)| some.into_iter().map(move |one| (transport, one)));
        each.map(|(transport, listener)| Ok((transport, Listening::new(listener)?))).collect()
    }
}

/// Binds an address, and prints it: with port 0 only the kernel knows the port.
fn bind(address: Address, transport: &str) -> Result<Listener, StartError> {
    let (listener, bound) = match &address {
        Address::Tcp(ip) => TcpListener::bind(ip)
            .and_then(|listener| {
                // The standard library asks for 128. While descriptors are short, more may have to
                // wait.
                socket::listen(&listener, Backlog::new(BACKLOG)?)?;
                Ok((listener.local_addr()?, listener))
            })
            .map(|(bound, listener)| (Listener::Tcp(listener), Address::Tcp(bound))),
        Address::Unix(path) => bind_unix(path).map(|listener| (Listener::Unix(listener), Address::Unix(path.clone()))),
    }
    .map_err(|error| StartError::Listen { address, error })?;
    // Nobody has to read it.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{transport} {bound}").and_then(|()| stdout.flush());
    Ok(listener)
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
