//! The floor: a bare server, which shows what a pair costs before any code of the daemon's own.
//!
//! It has one thread and epoll(7), and no runtime, engine, timers or limits. It understands the two
//! requests of version 1 that the benchmark sends, only in the form in which the benchmark sends
//! them, and makes the system calls without which a grant would not be safe. They are those that
//! strace(1) shows of the daemon, with the same flags and on the same full paths:
//!
//! | | calls |
//! |---|---|
//! | each burst of requests | epoll_wait |
//! | each request | recvfrom, sendto |
//! | acquire, file open | fcntl (F_OFD_SETLK, F_WRLCK), newfstatat: is it still this file? |
//! | acquire, new name | openat, newfstatat: which file is it?, then the same two calls |
//! | release, file stays open | fcntl (F_OFD_SETLK, F_UNLCK) |
//! | release, file is deleted | newfstatat: is it this file?, unlink, fcntl (as above), close |
//!
//! Like the daemon, it reads all requests of a burst before it writes the replies. It keeps files
//! open for warm names, and deletes them on release for cold ones.
//!
//! The daemon makes a few calls more. Each burst takes it a second epoll_wait, which does not
//! block. With the default linger it unlocks a file that has a place among those that are kept, and
//! locks it again before it looks and deletes.
//!
//! The floor cannot wait, and does not release what a lost connection held. Any request that the
//! benchmark would not send ends it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::{F_UNLCK, F_WRLCK};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::{FileStat, Mode, fstat, lstat};
use nix::unistd::unlink;

use crate::dialect::{NAME_BYTES, Name, Verb};
use crate::wait::lock;

/// The most requests that are read before their replies are written; the same as in the daemon.
const BURST_MAX: usize = 256;

/// The event of the listening socket. All others carry the index of a connection.
const LISTENER: u64 = u64::MAX;

const ACQUIRE: &[u8] = br#"{"id":1,"op":"acquire","lock":""#;
const RELEASE: &[u8] = br#"{"id":2,"op":"release","lock":""#;
const END: &[u8] = b"\"}\n";

const REPLY: [u8; 44] = *b"{\"id\":0,\"ok\":true,\"lock\":\"load-0000000000\"}\n";
const REPLY_ID_AT: usize = 6;
const REPLY_NAME_AT: usize = 26;

/// Serves on a free port, which it prints, until it is killed. `deletes`: each release deletes the
/// lock file.
pub(crate) fn serve(directory: &Path, deletes: bool) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    println!("{}", listener.local_addr()?);
    let directory = directory.to_owned();
    let (connections, locks, replies) = (Vec::new(), HashMap::new(), Vec::new());
    Floor { directory, deletes, listener, epoll, connections, locks, replies }.run()
}

struct Floor {
    directory: PathBuf,
    deletes: bool,
    listener: TcpListener,
    epoll: Epoll,
    /// A connection that has ended leaves its place empty.
    connections: Vec<Option<TcpStream>>,
    /// The names whose files are open.
    locks: HashMap<Name, Lock>,
    /// The replies of this burst, each with the index of its connection.
    replies: Vec<(usize, [u8; REPLY.len()])>,
}

/// An open lock file.
struct Lock {
    file: File,
    path: CString,
    /// Device and inode.
    identity: (u64, u64),
    /// The index of the connection that holds the lock.
    holder: Option<usize>,
}

impl Floor {
    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); BURST_MAX];
        let mut buffer = [0; 4096];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept()?,
                    number => self.receive(usize::try_from(number)?, &mut buffer)?,
                }
            }
            for (number, reply) in self.replies.drain(..) {
                let Some(stream) = &mut self.connections[number] else { continue };
                match stream.write(&reply) {
                    Ok(count) => ensure!(count == reply.len(), "the client does not read its replies"),
                    Err(_) => self.connections[number] = None,
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted?.0,
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, self.connections.len() as u64);
            self.epoll.add(&stream, event)?;
            self.connections.push(Some(stream));
        }
    }

    /// Reads once. A client has one request under way, so there is no more to read.
    fn receive(&mut self, number: usize, buffer: &mut [u8]) -> Result<()> {
        let Some(stream) = &mut self.connections[number] else { return Ok(()) };
        let count = match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // At the end of a run the client closes its connections with replies unread.
            Ok(0) | Err(_) => {
                self.connections[number] = None;
                return Ok(());
            }
            Ok(count) => count,
        };
        let line = &buffer[..count];
        let (verb, name) =
            parse(line).with_context(|| format!("not a request of the benchmark: {}", line.escape_ascii()))?;
        let mut reply = REPLY;
        reply[REPLY_NAME_AT..REPLY_NAME_AT + NAME_BYTES].copy_from_slice(&name);
        match verb {
            Verb::Acquire => self.acquire(name, number)?,
            Verb::Release => self.release(name, number)?,
        }
        reply[REPLY_ID_AT] = if verb == Verb::Acquire { b'1' } else { b'2' };
        self.replies.push((number, reply));
        Ok(())
    }

    fn acquire(&mut self, name: Name, number: usize) -> Result<()> {
        let held = match self.locks.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Lock::open(&self.directory, &name)?),
        };
        ensure!(held.holder.is_none(), "{} is held", name.escape_ascii());
        lock(&held.file, F_WRLCK)?;
        held.check(&name)?;
        held.holder = Some(number);
        Ok(())
    }

    fn release(&mut self, name: Name, number: usize) -> Result<()> {
        let Entry::Occupied(mut held) = self.locks.entry(name) else { return Err(not_held(&name)) };
        if held.get_mut().holder.take() != Some(number) {
            return Err(not_held(&name));
        }
        if !self.deletes {
            return lock(&held.get().file, F_UNLCK);
        }
        let held = held.remove();
        held.check(&name)?;
        unlink(&*held.path)?;
        lock(&held.file, F_UNLCK)
    }
}

impl Lock {
    fn open(directory: &Path, name: &Name) -> Result<Self> {
        let file_name = format!("{}.lck", name.escape_ascii());
        let path = CString::new(directory.join(file_name).into_os_string().into_encoded_bytes())?;
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(open(&*path, flags, Mode::from_bits_truncate(0o664))?);
        let identity = identity(&fstat(&file)?);
        Ok(Self { file, path, identity, holder: None })
    }

    /// Checks that the name still means this file.
    fn check(&self, name: &Name) -> Result<()> {
        let means = identity(&lstat(&*self.path)?);
        ensure!(means == self.identity, "the lock file of {} was replaced", name.escape_ascii());
        Ok(())
    }
}

fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn parse(line: &[u8]) -> Option<(Verb, Name)> {
    let (verb, rest) = match line.strip_prefix(ACQUIRE) {
        Some(rest) => (Verb::Acquire, rest),
        None => (Verb::Release, line.strip_prefix(RELEASE)?),
    };
    Some((verb, rest.strip_suffix(END)?.try_into().ok()?))
}

fn not_held(name: &Name) -> anyhow::Error {
    anyhow::anyhow!("{} is not held by this connection", name.escape_ascii())
}
