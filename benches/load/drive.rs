//! The load: connections that each acquire, release, and start again as soon as the reply has
//! arrived.
//!
//! One thread drives all of them with epoll(7), so that on a machine with two cores the server has
//! the other one. For each half of a pair it makes one read and one write, like the server, and
//! otherwise only compares bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::dialect::{Answer, Dialect, Exchange, Verb, numbered_name};

/// How long a run waits for any reply before it is given up: no server under test needs a second.
const STALLED_MS: u16 = 10_000;

/// Which locks the connections use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Each connection uses its own lock again and again.
    Warm,
    /// Each pair uses a new lock.
    Cold,
    /// All connections use the same lock.
    Contended,
}

struct Connection {
    stream: TcpStream,
    acquire: Exchange,
    release: Exchange,
    releasing: bool,
    partial: Vec<u8>,
    started: Instant,
}

/// A set of open connections and what they have measured.
pub(crate) struct Load {
    epoll: Epoll,
    connections: Vec<Connection>,
    names: Names,
    next_name: u64,
    /// The duration of each pair, in nanoseconds.
    pub(crate) latencies_ns: Vec<u64>,
    /// Acquires that were refused as busy and sent again.
    pub(crate) retries: u64,
}

/// Opens a blocking connection, on which an unanswered request is an error rather than an endless
/// wait.
pub(crate) fn connect(dialect: Dialect, address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(STALLED_MS.into())))?;
    dialect.open(&mut stream)?;
    Ok(stream)
}

impl Load {
    /// Opens `count` connections and sends their first requests.
    pub(crate) fn connect(dialect: Dialect, address: SocketAddr, names: Names, count: u64) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::new();
        for number in 0..count {
            let stream = connect(dialect, address)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
            let contended = names == Names::Contended;
            let name = numbered_name(if contended { 0 } else { number });
            connections.push(Connection {
                stream,
                acquire: dialect.exchange(Verb::Acquire, &name, contended),
                release: dialect.exchange(Verb::Release, &name, contended),
                releasing: false,
                partial: Vec::new(),
                started: Instant::now(),
            });
        }
        for connection in &mut connections {
            connection.started = Instant::now();
            connection.send()?;
        }
        Ok(Self { epoll, connections, names, next_name: count, latencies_ns: Vec::with_capacity(1 << 20), retries: 0 })
    }

    /// Answers replies with the next requests until the time is over. Requests that are under way
    /// then remain so for the next run.
    pub(crate) fn run(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        let mut events = vec![EpollEvent::empty(); self.connections.len()];
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            let ready = self.epoll.wait(&mut events, STALLED_MS)?;
            ensure!(ready > 0, "no reply on any connection for {STALLED_MS} ms");
            for event in &events[..ready] {
                let number = usize::try_from(event.data())?;
                self.receive(number, &mut buffer).with_context(|| format!("connection {number}"))?;
            }
        }
        Ok(())
    }

    /// Discards what was measured so far: the warm-up.
    pub(crate) fn forget(&mut self) {
        self.latencies_ns.clear();
        self.retries = 0;
    }

    fn receive(&mut self, number: usize, buffer: &mut [u8]) -> Result<()> {
        let connection = &mut self.connections[number];
        match connection.answer(buffer)? {
            Answer::Partial => return Ok(()),
            Answer::Busy => self.retries += 1,
            _ if !connection.releasing => connection.releasing = true,
            _ => {
                let now = Instant::now();
                let taken = now - connection.started;
                self.latencies_ns.push(u64::try_from(taken.as_nanos())?);
                connection.releasing = false;
                connection.started = now;
                if self.names == Names::Cold {
                    let name = numbered_name(self.next_name);
                    self.next_name += 1;
                    connection.acquire.rename(&name);
                    connection.release.rename(&name);
                }
            }
        }
        connection.send()
    }
}

impl Connection {
    fn exchange(&self) -> &Exchange {
        if self.releasing { &self.release } else { &self.acquire }
    }

    /// A request is far smaller than any socket buffer, and there is only one at a time, so that a
    /// short write means a broken server.
    fn send(&mut self) -> Result<()> {
        let request = if self.releasing { self.release.request() } else { self.acquire.request() };
        let sent = self.stream.write(request)?;
        ensure!(sent == request.len(), "the server does not read its requests");
        Ok(())
    }

    /// Reads once. A reply almost always arrives whole, and is then compared in place.
    fn answer(&mut self, buffer: &mut [u8]) -> Result<Answer> {
        let count = match self.stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Answer::Partial),
            other => other?,
        };
        ensure!(count > 0, "the server closed the connection");
        let answer = if self.partial.is_empty() {
            self.exchange().judge(&buffer[..count])
        } else {
            self.partial.extend_from_slice(&buffer[..count]);
            self.exchange().judge(&self.partial)
        };
        match answer {
            Answer::Wrong => {
                let unread = if self.partial.is_empty() { &buffer[..count] } else { &self.partial };
                bail!("unexpected reply {:?}", String::from_utf8_lossy(unread))
            }
            Answer::Partial if self.partial.is_empty() => self.partial.extend_from_slice(&buffer[..count]),
            Answer::Partial => {}
            Answer::Success | Answer::Busy => self.partial.clear(),
        }
        Ok(answer)
    }
}
