//! A connection to a daemon, as messages: lines over TCP and Unix sockets, text messages over
//! WebSocket. How much may come in is limited.

mod lines;
mod turn;
#[cfg(feature = "websocket")]
mod websocket;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::thread;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

use crate::address::{Server, host_and_port_of};
use crate::error::{DisconnectedError, ServerError};
use lines::{Lines, Stream};
pub(crate) use turn::Turn;
#[cfg(feature = "websocket")]
use websocket::WebSocket;

/// See the module.
#[derive(Debug)]
pub(crate) enum Link {
    Lines(Lines),
    #[cfg(feature = "websocket")]
    WebSocket(WebSocket),
}

impl Link {
    /// Connects, and does the handshake if the transport has one.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it has opened.
    pub(crate) async fn open(server: &Server) -> Result<Self, ServerError> {
        match server {
            Server::Tcp(host) => Ok(Self::Lines(Lines::new(Stream::Tcp(connect(host).await?)))),
            Server::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ServerError::Io)?;
                Ok(Self::Lines(Lines::new(Stream::Unix(stream))))
            }
            #[cfg(feature = "websocket")]
            Server::WebSocket { host, .. } => Ok(Self::WebSocket(WebSocket::open(connect(host).await?, server).await?)),
            #[cfg(not(feature = "websocket"))]
            Server::WebSocket { .. } => Err(ServerError::NoWebSocket),
        }
    }

    /// Another descriptor of the same connection.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Lines(lines) => lines.descriptor(),
            #[cfg(feature = "websocket")]
            Self::WebSocket(socket) => socket.descriptor(),
        }
    }

    /// Takes lines to be sent, and empties `lines`. [`turn`](Self::turn) sends them.
    pub(crate) fn push(&mut self, lines: &mut Vec<u8>) -> Result<(), DisconnectedError> {
        match self {
            Self::Lines(link) => {
                link.push(lines);
                Ok(())
            }
            #[cfg(feature = "websocket")]
            Self::WebSocket(socket) => socket.push(lines),
        }
    }

    /// Waits until the socket takes or gives something, sends what it takes, and hands each message
    /// that it gives to `take`.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: bytes are moved only in the poll that completes
    /// it, or stay in the link.
    pub(crate) async fn turn(&mut self, take: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Turn, DisconnectedError> {
        match self {
            Self::Lines(lines) => lines.turn(take).await,
            #[cfg(feature = "websocket")]
            Self::WebSocket(socket) => socket.turn(take).await,
        }
    }
}

async fn connect(host: &str) -> Result<TcpStream, ServerError> {
    let addresses = resolve(host).await.map_err(ServerError::Io)?;
    let stream = TcpStream::connect(&*addresses).await.map_err(ServerError::Io)?;
    stream.set_nodelay(true).map_err(ServerError::Io)?;
    Ok(stream)
}

/// The addresses of a host and port. Names are looked up in a thread of their own, since
/// getaddrinfo(3) blocks. (Tokio's lookup panics where the system refuses it a thread.)
async fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let (found, addresses) = oneshot::channel();
    let host = host.to_owned();
    let look_up = move || {
        let addresses = match host_and_port_of(&host) {
            Some(address) => address.to_socket_addrs(),
            None => host.to_socket_addrs(),
        };
        // If nobody waits for the addresses any more, they are not needed.
        drop(found.send(addresses.map(Iterator::collect)));
    };
    thread::Builder::new().name("resolve".into()).spawn(look_up).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start a thread to look the name up: {error}; raise ulimit -u"))
    })?;
    addresses.await.expect("the thread sends what it has found")
}
