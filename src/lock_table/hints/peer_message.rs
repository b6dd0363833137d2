//! What daemons say to each other: lines of a verb and a name. Whoever may write the lock directory can say anything: a word is
//! parsed as such, and there are only so many of them in a time.

use std::io;

use tokio::net::UnixStream;

use super::rate_limit::Portions;
use distrilock_protocol::name::{LockName, NAME_BYTES_MAX};

/// The longest line, with its end.
const LINE_BYTES_MAX: usize = VERB_BYTES + NAME_BYTES_MAX + 1;

/// A verb and a space.
const VERB_BYTES: usize = 5;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// I wait for this name: tell me when you let go of it.
    Want(LockName),
    /// I hold this name, and will tell you when I let go of it.
    Held(LockName),
    /// I have let go of this name.
    Free(LockName),
}

impl Word {
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

    /// None: a line of a later version, or nonsense.
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

/// Takes words from a connection until it ends; what comes too fast stays in the kernel's buffer for a while.
pub(super) async fn read(stream: &UnixStream, mut take: impl FnMut(Word)) -> io::Result<()> {
    let mut portions = Portions::new();
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
            portions.take().await;
            Word::parse(&buffer[start..start + length]).into_iter().for_each(&mut take);
            start += length + 1;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled >= LINE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Writes lines, however long that takes.
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
    use crate::limits::{WORDS_PER_PERIOD_MAX, WORDS_PERIOD_MS};

    /// Takes bytes as a daemon would that gets them at once; tells the words, and whether the sender was cut off.
    fn taken(bytes: &[u8]) -> (Vec<Word>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut words = Vec::new();
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
            let take = async {
                let taken = read(&ours, |word| words.push(word)).await;
                drop(ours);
                taken
            };
            let (taken, ()) = tokio::join!(take, send);
            let cut_off = taken.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
            (words, cut_off)
        })
    }

    fn name(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    /// What is written is read, in its order, also where it fills the buffer many times over.
    #[test]
    fn words_arrive() {
        let mut words =
            vec![Word::Want(name("a")), Word::Held(name(&"x".repeat(NAME_BYTES_MAX))), Word::Free(name("-"))];
        words.extend((0..200).map(|number| Word::Free(name(&format!("{number}")))));
        let mut lines = String::new();
        words.iter().for_each(|word| word.append_to(&mut lines));
        assert_eq!(taken(lines.as_bytes()), (words, false));
    }

    /// A flood is taken in portions: the time that is asserted is the least that it may take.
    #[test]
    fn a_flood_is_slowed_down() {
        let started = std::time::Instant::now();
        let lines = "free a\n".repeat(4 * WORDS_PER_PERIOD_MAX as usize);
        assert_eq!(taken(lines.as_bytes()).0.len(), 4 * WORDS_PER_PERIOD_MAX as usize);
        assert!(started.elapsed() >= Duration::from_millis(2 * WORDS_PERIOD_MS), "{:?}", started.elapsed());
    }

    /// Lines that are no words are passed over; who sends one that is too long is cut off.
    #[test]
    fn nonsense_is_no_word() {
        let lines =
            b"\nfree\nfree \nfree a/b\nFREE a\nfree  a\nwant a \nfree a\r\nlater b\n\0\xff\nfree good\nfree half";
        assert_eq!(taken(lines), (vec![Word::Free(name("good"))], false));
        assert_eq!(taken(&[b'x'; LINE_BYTES_MAX - 1]), (vec![], false));
        assert_eq!(taken(&[b'x'; 1 << 20]), (vec![], true));
    }
}
