//! The messages between daemons: lines of a verb and a name. Anyone who can write the lock
//! directory can send anything, so messages are parsed with care and admitted at a bounded rate.

use std::io;

use tokio::net::UnixStream;

use super::rate_limit::RateLimit;
use distrilock_protocol::name::{LockName, NAME_BYTES_MAX};

/// The longest line, with its end.
const LINE_BYTES_MAX: usize = VERB_BYTES + NAME_BYTES_MAX + 1;

/// A verb and a space.
const VERB_BYTES: usize = 5;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerMessage {
    /// I wait for this name: tell me when you release it.
    Want(LockName),
    /// I hold this name, and will tell you when I release it.
    Held(LockName),
    /// I have released this name.
    Free(LockName),
}

impl PeerMessage {
    pub(super) fn append_to(&self, lines: &mut String) {
        let (verb, name) = match self {
            Self::Want(name) => ("want ", name),
            Self::Held(name) => ("held ", name),
            Self::Free(name) => ("free ", name),
        };
        lines.push_str(verb);
        lines.push_str(name.as_str());
        lines.push('\n');
    }

    /// Returns `None` for a line of a later version, or nonsense.
    fn parse(line: &[u8]) -> Option<Self> {
        let (verb, name) = line.split_at_checked(VERB_BYTES)?;
        let name = LockName::parse(name).ok()?;
        match verb {
            b"want " => Some(Self::Want(name)),
            b"held " => Some(Self::Held(name)),
            b"free " => Some(Self::Free(name)),
            _ => None,
        }
    }
}

/// Passes on the messages of a connection until it ends. What comes too fast stays in the kernel's
/// buffer for a while.
pub(super) async fn read(stream: &UnixStream, rate: &RateLimit, mut hear: impl FnMut(PeerMessage)) -> io::Result<()> {
    let mut admitted = 0;
    let mut buffer = [0; 8 * LINE_BYTES_MAX];
    let mut filled = 0;
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let mut start = 0;
        while let Some(length) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            if admitted == 0 {
                admitted = rate.admit().await;
            }
            admitted -= 1;
            PeerMessage::parse(&buffer[start..start + length]).into_iter().for_each(&mut hear);
            start += length + 1;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled >= LINE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Writes all lines, however long that takes.
pub(super) async fn write(stream: &UnixStream, lines: &str) -> io::Result<()> {
    let mut rest = lines.as_bytes();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::{MESSAGES_PER_PERIOD_MAX, MESSAGES_PERIOD_MS};

    /// Reads bytes as a daemon that gets them at once. Returns the messages, and whether the sender
    /// was cut off.
    fn heard(bytes: &[u8]) -> (Vec<PeerMessage>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut messages = Vec::new();
            let send = async {
                let mut rest = bytes;
                while !rest.is_empty() && theirs.writable().await.is_ok() {
                    match theirs.try_write(rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
                drop(theirs);
            };
            let receive = async {
                let ended = read(&ours, &RateLimit::default(), |message| messages.push(message)).await;
                drop(ours);
                ended
            };
            let (ended, ()) = tokio::join!(receive, send);
            let cut_off = ended.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
            (messages, cut_off)
        })
    }

    fn name(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    /// What is written is read, in its order, even if it fills the buffer many times over.
    #[test]
    fn messages_arrive() {
        let mut messages = vec![
            PeerMessage::Want(name("a")),
            PeerMessage::Held(name(&"x".repeat(NAME_BYTES_MAX))),
            PeerMessage::Free(name("-")),
        ];
        messages.extend((0..200).map(|number| PeerMessage::Free(name(&format!("{number}")))));
        let mut lines = String::new();
        messages.iter().for_each(|message| message.append_to(&mut lines));
        assert_eq!(heard(lines.as_bytes()), (messages, false));
    }

    /// A flood is admitted period by period: the asserted time is the least that this can take.
    #[test]
    fn a_flood_is_slowed_down() {
        let started = std::time::Instant::now();
        let lines = "free a\n".repeat(4 * MESSAGES_PER_PERIOD_MAX as usize);
        assert_eq!(heard(lines.as_bytes()).0.len(), 4 * MESSAGES_PER_PERIOD_MAX as usize);
        assert!(started.elapsed() >= Duration::from_millis(2 * MESSAGES_PERIOD_MS), "{:?}", started.elapsed());
    }

    /// The rate is that of all daemons together: two floods take as long as one of twice the
    /// length, and a daemon that says little does not wait for their end.
    #[test]
    fn floods_share_the_rate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rate = RateLimit::default();
            let flood = || "free a\n".repeat(3 * MESSAGES_PER_PERIOD_MAX as usize);
            let ended = std::cell::RefCell::new(Vec::new());
            let say = async |who: &'static str, lines: String| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let send = async {
                    write(&theirs, &lines).await.unwrap();
                    drop(theirs);
                };
                let (read, ()) = tokio::join!(read(&ours, &rate, |_| {}), send);
                read.unwrap();
                ended.borrow_mut().push(who);
            };
            let started = std::time::Instant::now();
            tokio::join!(say("flood", flood()), say("flood", flood()), say("quiet", "free b\n".into()));
            assert!(started.elapsed() >= Duration::from_millis(4 * MESSAGES_PERIOD_MS), "{:?}", started.elapsed());
            assert_eq!(*ended.borrow(), ["quiet", "flood", "flood"]);
        });
    }

    /// Lines that are no messages are skipped; the sender of one that is too long is cut off.
    #[test]
    fn nonsense_is_no_message() {
        let lines =
            b"\nfree\nfree \nfree a/b\nFREE a\nfree  a\nwant a \nfree a\r\nlater b\n\0\xff\nfree good\nfree half";
        assert_eq!(heard(lines), (vec![PeerMessage::Free(name("good"))], false));
        assert_eq!(heard(&[b'x'; LINE_BYTES_MAX - 1]), (vec![], false));
        assert_eq!(heard(&[b'x'; 1 << 20]), (vec![], true));
    }
}
