//! Lines over a byte stream.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::turn::{MESSAGE_BYTES_MAX, READ_BYTES_MAX, Turn};
use crate::error::{DisconnectedError, Excerpt};

#[derive(Debug)]
pub(crate) enum Stream {
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

/// See the module.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// What has come of a line.
    input: Vec<u8>,
    /// How many bytes of `input` are known to have no end of a line.
    searched: usize,
    /// What the socket has not taken yet.
    out: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, input: Vec::new(), searched: 0, out: Vec::new() }
    }

    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    pub(super) fn push(&mut self, lines: &mut Vec<u8>) {
        self.out.append(lines);
    }

    pub(super) async fn turn(&mut self, take: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Turn, DisconnectedError> {
        let interest = if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = self.stream.ready(interest).await?;
        // Nothing is awaited from here on, so that no byte is lost.
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
            Some(count) => {
                self.input.extend_from_slice(&bytes[..count]);
                lines(&mut self.input, &mut self.searched, take)?;
                Ok(Turn::Open)
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

/// Hands each whole line of `input` to `take`, and leaves the rest.
fn lines(
    input: &mut Vec<u8>,
    searched: &mut usize,
    take: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<(), DisconnectedError> {
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
        return Err(DisconnectedError::Garbage { what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Result<Vec<String>, DisconnectedError> {
        let (mut input, mut searched, mut taken) = (Vec::new(), 0, Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            lines(&mut input, &mut searched, &mut |line| taken.push(String::from_utf8_lossy(line).into_owned()))?;
        }
        Ok(taken)
    }

    /// Lines come whole, however the bytes are cut. An endless one ends the connection.
    #[test]
    fn lines_are_found() {
        assert_eq!(split(&[b"a\nb", b"c\r\n\n\nd", b"", b"\ne"]).unwrap(), ["a", "bc", "d"]);
        let endless = vec![b'x'; READ_BYTES_MAX];
        let pieces = vec![&endless[..]; MESSAGE_BYTES_MAX / READ_BYTES_MAX + 1];
        assert!(matches!(split(&pieces), Err(DisconnectedError::Garbage { .. })));
    }
}
