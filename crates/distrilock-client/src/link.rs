//! A connection to a daemon as messages: lines over TCP and Unix sockets, text messages over WebSocket. What comes in is bounded.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use super::Server;
use super::error::{Disconnected, Excerpt, Failure};

/// The longest message of a daemon: what its outbox holds by default.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that one read takes from the socket.
const READ_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
        }
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(into),
            Self::Unix(stream) => stream.try_read(into),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

/// What tungstenite takes for a stream: what has been read, and room for what is to be written.
#[derive(Debug, Default)]
struct Memory {
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Read for Memory {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.input.len().min(into.len());
        into[..count].copy_from_slice(&self.input[..count]);
        self.input.drain(..count);
        Ok(count)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum Framing {
    /// What has come of a line, and how much of it is known to have no end.
    Lines {
        input: Vec<u8>,
        searched: usize,
    },
    WebSocket(Box<WebSocket<Memory>>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
    framing: Framing,
    /// What the socket has not taken yet.
    out: Vec<u8>,
}

/// What a turn of the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// More may come.
    Open,
    /// The daemon has closed.
    Closed,
}

impl Link {
    /// Another descriptor of the same connection.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Connects, and shakes hands where that is the custom.
    pub(super) async fn open(server: &Server) -> Result<Self, Failure> {
        let stream = match server {
            Server::Tcp(host) | Server::WebSocket { host, .. } => {
                let stream = TcpStream::connect(host).await.map_err(Failure::Io)?;
                stream.set_nodelay(true).map_err(Failure::Io)?;
                Stream::Tcp(stream)
            }
            Server::Unix(path) => Stream::Unix(UnixStream::connect(path).await.map_err(Failure::Io)?),
        };
        let framing = match server {
            Server::WebSocket { .. } => Framing::WebSocket(Box::new(shake_hands(&stream, server).await?)),
            Server::Tcp(_) | Server::Unix(_) => Framing::Lines { input: Vec::new(), searched: 0 },
        };
        Ok(Self { stream, framing, out: Vec::new() })
    }

    /// Takes lines to be sent.
    pub(super) fn push(&mut self, lines: &mut Vec<u8>) -> Result<(), Disconnected> {
        match &mut self.framing {
            Framing::Lines { .. } => self.out.append(lines),
            Framing::WebSocket(socket) => {
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let text = String::from_utf8_lossy(line).into_owned();
                    socket.send(Message::text(text)).map_err(|error| websocket(&error))?;
                }
                lines.clear();
                self.out.append(&mut socket.get_mut().out);
            }
        }
        Ok(())
    }

    /// Waits until the socket takes or gives something.
    ///
    /// # Cancel safety
    /// Nothing is read or written here.
    pub(super) async fn ready(&self) -> io::Result<Ready> {
        let interest = if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        self.stream.ready(interest).await
    }

    /// Writes what the socket takes, and hands each message that it gives to `take`.
    pub(super) fn turn(&mut self, ready: Ready, take: &mut dyn FnMut(&[u8])) -> Result<Turn, Disconnected> {
        if ready.is_writable()
            && !self.out.is_empty()
            && let Some(count) = would_block(self.stream.try_write(&self.out))?
        {
            self.out.drain(..count);
        }
        if !ready.is_readable() && !ready.is_read_closed() {
            return Ok(Turn::Open);
        }
        let mut bytes = [0; READ_BYTES_MAX];
        match would_block(self.stream.try_read(&mut bytes))? {
            None => Ok(Turn::Open),
            Some(0) => Ok(Turn::Closed),
            Some(count) => self.take(&bytes[..count], take),
        }
    }

    fn take(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<Turn, Disconnected> {
        match &mut self.framing {
            Framing::Lines { input, searched } => {
                input.extend_from_slice(bytes);
                lines(input, searched, take)?;
                Ok(Turn::Open)
            }
            Framing::WebSocket(socket) => {
                socket.get_mut().input.extend_from_slice(bytes);
                let turn = messages(socket, take);
                // An answer to a ping or to a close frame.
                self.out.append(&mut socket.get_mut().out);
                turn
            }
        }
    }
}

fn would_block(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hands on each whole line of `input`, and leaves the rest.
fn lines(input: &mut Vec<u8>, searched: &mut usize, take: &mut dyn FnMut(&[u8])) -> Result<(), Disconnected> {
    let mut start = 0;
    while let Some(length) = input[*searched..].iter().position(|byte| *byte == b'\n') {
        let end = *searched + length;
        let line = input[start..end].trim_ascii();
        if !line.is_empty() {
            take(line);
        }
        start = end + 1;
        *searched = start;
    }
    input.drain(..start);
    *searched = input.len();
    if input.len() > MESSAGE_BYTES_MAX {
        let what = format!("a line of more than {MESSAGE_BYTES_MAX} bytes: {}", Excerpt(input));
        return Err(Disconnected::Garbage { what });
    }
    Ok(())
}

fn messages(socket: &mut WebSocket<Memory>, take: &mut dyn FnMut(&[u8])) -> Result<Turn, Disconnected> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => take(text.as_bytes()),
            Ok(Message::Binary(bytes)) => {
                return Err(Disconnected::Garbage { what: format!("a binary message: {}", Excerpt(&bytes)) });
            }
            Ok(Message::Close(_)) => return Ok(Turn::Closed),
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Open),
            Err(error) => return Err(websocket(&error)),
        }
    }
}

fn websocket(error: &tungstenite::Error) -> Disconnected {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Disconnected::Closed,
        error => Disconnected::Garbage { what: super::error::shown(&error.to_string()) },
    }
}

/// The handshake of RFC 6455, section 4.1.
async fn shake_hands(stream: &Stream, server: &Server) -> Result<WebSocket<Memory>, Failure> {
    let stranger = |error: &dyn std::fmt::Display| Failure::Stranger { what: super::error::shown(&error.to_string()) };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(READ_BYTES_MAX)
        .write_buffer_size(0);
    let mut shaken = tungstenite::client::client_with_config(server.to_string(), Memory::default(), Some(config));
    loop {
        let mut interrupted = match shaken {
            Ok((socket, _)) => return Ok(socket),
            Err(HandshakeError::Failure(error)) => return Err(stranger(&error)),
            Err(HandshakeError::Interrupted(interrupted)) => interrupted,
        };
        exchange(stream, interrupted.get_mut().get_mut()).await?;
        shaken = interrupted.handshake();
    }
}

/// Writes what the handshake has to say, then reads more of the answer.
async fn exchange(stream: &Stream, memory: &mut Memory) -> Result<(), Failure> {
    while !memory.out.is_empty() {
        stream.ready(Interest::WRITABLE).await.map_err(Failure::Io)?;
        if let Some(count) = would_block(stream.try_write(&memory.out)).map_err(Failure::Io)? {
            memory.out.drain(..count);
        }
    }
    let mut bytes = vec![0; READ_BYTES_MAX];
    loop {
        stream.ready(Interest::READABLE).await.map_err(Failure::Io)?;
        match would_block(stream.try_read(&mut bytes)).map_err(Failure::Io)? {
            None => {}
            Some(0) => return Err(Failure::Ended(Disconnected::Closed)),
            Some(count) => {
                memory.input.extend_from_slice(&bytes[..count]);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Result<Vec<String>, Disconnected> {
        let (mut input, mut searched, mut taken) = (Vec::new(), 0, Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            lines(&mut input, &mut searched, &mut |line| taken.push(String::from_utf8_lossy(line).into_owned()))?;
        }
        Ok(taken)
    }

    /// Lines come whole, however the bytes are cut; an endless one ends the connection.
    #[test]
    fn lines_are_found() {
        assert_eq!(split(&[b"a\nb", b"c\r\n\n\nd", b"", b"\ne"]).unwrap(), ["a", "bc", "d"]);
        let endless = vec![b'x'; READ_BYTES_MAX];
        let pieces = vec![&endless[..]; MESSAGE_BYTES_MAX / READ_BYTES_MAX + 1];
        assert!(matches!(split(&pieces), Err(Disconnected::Garbage { .. })));
    }
}
