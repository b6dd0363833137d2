//! Sockets of two families behind one type, and their options.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc::POLLRDHUP;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, getsockopt, setsockopt, shutdown, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::limits::{FAREWELL_BYTES_MAX, FAREWELL_MS_MAX};
use crate::systemd::sockets::Listener;

/// A listening socket that the runtime watches.
#[derive(Debug)]
pub enum Listening {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

impl Listening {
    /// Registers a listener with the current runtime.
    ///
    /// # Errors
    /// If the runtime cannot watch it.
    pub fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }

    /// Accepts the next connection. Returns it with its peer, for logs; it belongs to no runtime
    /// yet.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream.into_std()?), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let accepted = Accepted::Unix(stream.into_std()?);
                let peer = peer_of(&accepted);
                Ok((accepted, peer))
            }
        }
    }
}

/// A connection on its way to the thread that serves it.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// The peer of a connection, for logs.
pub(super) fn peer_of(accepted: &Accepted) -> String {
    match accepted {
        Accepted::Tcp(stream) => {
            stream.peer_addr().map_or_else(|_| "a peer that is gone".into(), |peer| peer.to_string())
        }
        Accepted::Unix(stream) => {
            let peer = getsockopt(stream, sockopt::PeerCredentials).ok();
            peer.map_or_else(|| "unix".into(), |peer| format!("unix:pid={}", peer.pid()))
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Stream {
    /// Registers a connection with the current runtime. The kernel gives up a peer that
    /// acknowledges neither keep-alive probes nor data for `dead_after` (tcp(7), TCP_KEEPIDLE and
    /// TCP_USER_TIMEOUT).
    pub(super) fn new(accepted: Accepted, dead_after: Duration) -> io::Result<Self> {
        match accepted {
            Accepted::Tcp(stream) => {
                stream.set_nodelay(true)?;
                // A read stops at urgent data, which would look like the end of the available data
                // (tcp(7)).
                setsockopt(&stream, sockopt::OobInline, &true)?;
                let seconds = u32::try_from(dead_after.as_secs()).unwrap_or(u32::MAX).max(3);
                let millis = u32::try_from(dead_after.as_millis()).unwrap_or(u32::MAX);
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                setsockopt(&stream, sockopt::TcpKeepIdle, &(seconds / 3))?;
                setsockopt(&stream, sockopt::TcpKeepInterval, &(seconds / 3))?;
                setsockopt(&stream, sockopt::TcpKeepCount, &2)?;
                setsockopt(&stream, sockopt::TcpUserTimeout, &millis)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            Accepted::Unix(stream) => UnixStream::from_std(stream).map(Self::Unix),
        }
    }

    /// Takes the socket back from the runtime.
    pub(super) fn into_socket(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(stream) => stream.into_std()?.into(),
            Self::Unix(stream) => stream.into_std()?.into(),
        })
    }

    /// Reads what is available. A short read means that there is no more and the next call would be
    /// in vain, so the readiness is cleared until the kernel reports more (epoll(7), question 9;
    /// FIN is remembered apart).
    pub(super) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let no_more = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let count = match self {
            Self::Tcp(stream) => stream.try_read(into)?,
            Self::Unix(stream) => stream.try_read(into)?,
        };
        if (1..into.len()).contains(&count) {
            let _: io::Result<()> = match self {
                Self::Tcp(stream) => stream.try_io(Interest::READABLE, no_more),
                Self::Unix(stream) => stream.try_io(Interest::READABLE, no_more),
            };
        }
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes now. Returns how much that was.
    pub(super) fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Sends FIN: nothing more will be written.
    fn finish(&self) {
        // A peer that has reset the connection needs no FIN.
        let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Write);
    }

    /// Whether the peer has sent FIN or the connection is gone. There may still be bytes to read
    /// (poll(2), POLLRDHUP).
    pub(super) fn hung_up(&self) -> bool {
        // nix has no name for it.
        let wanted = PollFlags::from_bits_retain(POLLRDHUP);
        let mut socket = [PollFd::new(self.as_fd(), wanted)];
        let over = wanted | PollFlags::POLLHUP | PollFlags::POLLERR;
        let polled = poll(&mut socket, PollTimeout::ZERO);
        // `None` means events that nix does not know, such as POLLRDHUP.
        polled == Ok(1) && socket[0].revents().is_none_or(|events| events.intersects(over))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Writes the last bytes and waits, for a while, until the peer has closed as well: an unread byte
/// at close would make the kernel send RST, which can destroy the last bytes on their way. The
/// session is over already.
pub(super) async fn farewell(stream: &Stream, bytes: &[u8]) {
    let last = async {
        let mut written = 0;
        while written < bytes.len() {
            poll_fn(|cx| stream.poll_writable(cx)).await?;
            written += stream.write_some(&bytes[written..])?;
        }
        stream.finish();
        // On the heap: a local array would be part of every connection's task from the start.
        let (mut scrap, mut dropped) = (vec![0; 1024], 0);
        while dropped < FAREWELL_BYTES_MAX {
            poll_fn(|cx| stream.poll_readable(cx)).await?;
            match stream.try_read(&mut scrap) {
                Ok(0) => break,
                Ok(count) => dropped += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    // Whether they arrived or not, the connection ends here.
    let _: Result<io::Result<()>, _> = tokio::time::timeout(Duration::from_millis(FAREWELL_MS_MAX), last).await;
}
