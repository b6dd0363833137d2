//! What a process of the daemon leaves to the next one: descriptors, and bytes that describe them.
//! They wait in the queue of a socket pair that the service manager keeps in its file descriptor
//! store (sd_pid_notify_with_fds(3)). The pair takes two entries of the store, however many
//! descriptors are queued; the manager's work grows with the square of the number of entries. The
//! queue keeps its descriptors open (unix(7), SCM_RIGHTS), and everything in it is closed when the
//! manager drops the pair.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::notify::Notifier;
use crate::sync::locked;

/// The pair's name in the store; `sockets` recognizes names that begin with `store`.
pub const NAME: &str = "store";

/// How many descriptors a message carries: the kernel takes 253 (SCM_MAX_FD).
const DESCRIPTORS_PER_MESSAGE: usize = 250;

/// The size that is asked for the queue; net.core.wmem_max bounds it. A message of 250 descriptors
/// counts as about one KiB.
const QUEUE_BYTES: usize = 4 << 20;

/// The first message. Its one descriptor is a memory file with the bytes.
const BEGIN: &[u8] = b"begin";
/// A message with descriptors.
const MORE: &[u8] = b"more";
/// The last message: nothing is missing.
const END: &[u8] = b"end";

/// The pair that the service manager keeps.
#[derive(Debug)]
pub struct Store {
    ends: [OwnedFd; 2],
    /// Will have the bytes. It is made at the start, since descriptors may have run out at the end.
    memory: Mutex<Option<File>>,
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create("distrilock hand-over", MFdFlags::MFD_CLOEXEC)?))
}

/// What the previous process left.
#[derive(Debug)]
pub struct Left {
    /// The bytes that describe the descriptors.
    pub bytes: Vec<u8>,
    /// The descriptors, in the order in which they were left.
    pub descriptors: Vec<OwnedFd>,
}

/// The contents of the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The previous process was killed in the middle.
    #[error("the previous process ended while it was handing over")]
    Cut,
    /// This process could not open all of the descriptors.
    #[error("the previous process left more descriptors than this one may open (LimitNOFILE=)")]
    Descriptors,
    /// A system call failed.
    #[error("cannot read what the previous process left: {0}")]
    System(#[from] io::Error),
}

impl Store {
    /// The pair that the service manager passed, if it passed one.
    ///
    /// # Errors
    /// The names of everything that was passed, if it is not exactly one pair; all of it is closed.
    pub fn of(stored: Vec<(String, OwnedFd)>) -> Result<Option<Self>, Vec<String>> {
        if stored.is_empty() {
            return Ok(None);
        }
        let names = stored.iter().map(|(name, _)| name.clone()).collect();
        let ends: Vec<OwnedFd> = stored.into_iter().filter(|(name, _)| name == NAME).map(|(_, end)| end).collect();
        ends.try_into().map(|ends| Some(Self::with(ends))).map_err(|_: Vec<OwnedFd>| names)
    }

    fn with(ends: [OwnedFd; 2]) -> Self {
        // If there is none now, there may be one later.
        Self { ends, memory: Mutex::new(memory().ok()) }
    }

    /// Makes a new pair and asks the service manager to keep it; `None` without such a manager.
    ///
    /// # Errors
    /// If the system refuses the pair, or the manager does not take the message.
    pub fn new(notifier: &Notifier) -> io::Result<Option<Self>> {
        if !notifier.keeps_descriptors() {
            return Ok(None);
        }
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let store = Self::with([one, other]);
        notifier.keep(NAME, &store.ends.each_ref().map(AsFd::as_fd))?;
        Ok(Some(store))
    }

    /// Leaves bytes and descriptors to the next process.
    ///
    /// # Errors
    /// If the system refuses: too many descriptors of this user are in flight (RLIMIT_NOFILE), or
    /// the queue is full. The next process then gets [`StoreError::Cut`].
    pub fn leave(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let kept = locked(&self.memory).take();
        let mut memory = kept.map_or_else(memory, Ok)?;
        memory.write_all(bytes)?;
        // The kernel reduces it to the system's maximum.
        let _ = set_socket_send_buffer_size(&self.ends[0], QUEUE_BYTES);
        self.send(BEGIN, &[memory.as_fd()])?;
        for some in descriptors.chunks(DESCRIPTORS_PER_MESSAGE) {
            self.send(MORE, some)?;
        }
        self.send(END, &[])
    }

    fn send(&self, word: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() {
            assert!(
                control.push(SendAncillaryMessage::ScmRights(descriptors)),
                "the buffer is large enough for a whole chunk"
            );
        }
        sendmsg(&self.ends[0], &[IoSlice::new(word)], &mut control, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Takes what the previous process left, if anything. The queue is empty afterwards, even if
    /// this fails.
    ///
    /// # Errors
    /// If it is incomplete.
    pub fn take(&self) -> Result<Option<Left>, StoreError> {
        let mut messages = Vec::new();
        let mut failed = None;
        for end in &self.ends {
            loop {
                match receive(end) {
                    Ok(Received { word, descriptors, whole: true }) => messages.push((word, descriptors)),
                    // Continues: descriptors that stay in the queue stay open and locked.
                    Ok(_) => failed = Some(StoreError::Descriptors),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        failed = Some(error.into());
                        break;
                    }
                }
            }
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        let mut messages = messages.into_iter();
        let Some((word, begun)) = messages.next() else { return Ok(None) };
        let memory = begun.into_iter().next().filter(|_| word == BEGIN).ok_or(StoreError::Cut)?;
        let (mut descriptors, mut ended) = (Vec::new(), false);
        for (word, some) in messages {
            if ended || (word != MORE && word != END) {
                return Err(StoreError::Cut);
            }
            ended = word == END;
            descriptors.extend(some);
        }
        if !ended {
            return Err(StoreError::Cut);
        }
        let (mut memory, mut bytes) = (File::from(memory), Vec::new());
        memory.rewind()?;
        memory.read_to_end(&mut bytes)?;
        Ok(Some(Left { bytes, descriptors }))
    }
}

/// One message, with the descriptors that it carries.
struct Received {
    word: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Whether none of the descriptors is missing.
    whole: bool,
}

fn receive(end: &OwnedFd) -> io::Result<Received> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut word = [0; 16];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(end, &mut [IoSliceMut::new(&mut word)], &mut control, flags)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = rights.flatten().collect();
    let whole = !got.flags.contains(rustix::net::ReturnFlags::CTRUNC);
    Ok(Received { word: word[..got.bytes].to_vec(), descriptors, whole })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn store() -> Store {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        Store::with([one, other])
    }

    /// Bytes and descriptors arrive once and in order, over several messages, and the pair can be
    /// used again.
    #[test]
    fn left_and_taken() {
        let store = store();
        for round in 0..3 {
            assert!(store.take().unwrap().is_none());
            let files: Vec<File> = (0..600).map(|_| tempfile::tempfile().unwrap()).collect();
            for (n, mut file) in files.iter().enumerate() {
                write!(file, "{n}").unwrap();
            }
            let bytes = vec![round; 1 << 20];
            store.leave(&bytes, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
            drop(files);
            let left = store.take().unwrap().unwrap();
            assert_eq!(left.bytes, bytes);
            let text = |descriptor: OwnedFd| {
                let (mut file, mut text) = (File::from(descriptor), String::new());
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            };
            let texts: Vec<String> = left.descriptors.into_iter().map(text).collect();
            assert_eq!(texts, (0..600).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }

    /// A process ends in the middle: the next one notices, closes what was left, and can use the
    /// pair.
    #[test]
    fn cut_in_the_middle() {
        let store = store();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let memory = tempfile::tempfile().unwrap();
        store.send(BEGIN, &[memory.as_fd()]).unwrap();
        store.send(MORE, &[listener.as_fd()]).unwrap();
        drop(listener);
        UnixStream::connect(&path).expect("the queue keeps it open");
        assert!(matches!(store.take(), Err(StoreError::Cut)));
        UnixStream::connect(&path).expect_err("it is closed");
        assert!(store.take().unwrap().is_none());
        store.leave(b"x", &[]).unwrap();
        assert_eq!(store.take().unwrap().unwrap().bytes, b"x");
    }

    /// The queue has room for the descriptors of 65,536 sessions with one lock each, as far as the
    /// test may open them.
    #[test]
    fn the_queue_is_long_enough() {
        let store = store();
        let file = tempfile::tempfile().unwrap();
        let _ = set_socket_send_buffer_size(&store.ends[0], QUEUE_BYTES);
        let mut count = 0;
        while store.send(MORE, &[file.as_fd()]).is_ok() {
            count += 1;
        }
        println!("{count} messages, {} descriptors", count * DESCRIPTORS_PER_MESSAGE);
        assert!(count * DESCRIPTORS_PER_MESSAGE >= 2 * crate::limits::SESSIONS_MAX, "{count} messages");
    }
}
