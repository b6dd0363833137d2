//! How a fence is written into a file: as text with a checksum, so that a torn text is told from a
//! whole one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

use crate::checksum::fnv1a;

/// How each of our texts begins.
const MAGIC: &str = "distrilock fence ";

/// MAGIC, twenty digits, a space, eight digits of the checksum, a line feed.
pub(super) const TEXT_BYTES: usize = MAGIC.len() + 20 + 1 + 8 + 1;

/// What is in a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No fence, or one that was not written completely.
    Nothing,
    Fence(u64),
    /// Somebody else's text.
    Foreign,
}

pub(super) fn text(number: u64) -> String {
    let digits = format!("{number:020}");
    format!("{MAGIC}{digits} {:08x}\n", fnv1a(digits.as_bytes()))
}

pub(super) fn content(bytes: &[u8]) -> Content {
    let digits = bytes.strip_prefix(MAGIC.as_bytes()).and_then(|rest| std::str::from_utf8(rest.get(..20)?).ok());
    if let Some(number) = digits.and_then(|digits| digits.parse().ok())
        && text(number).as_bytes() == bytes
    {
        return Content::Fence(number);
    }
    // Blocks that were allocated to a file and never written read as zeros.
    let begun =
        bytes.len() <= TEXT_BYTES && (bytes.starts_with(MAGIC.as_bytes()) || bytes.iter().all(|byte| *byte == 0));
    if begun { Content::Nothing } else { Content::Foreign }
}

/// What a lock file of this size contains. It is opened with these flags besides; a link is not
/// followed, and a FIFO is not waited for.
///
/// # Errors
/// If it cannot be read.
pub(super) fn content_of(path: &Path, bytes: u64, flags: OFlag) -> io::Result<Content> {
    match usize::try_from(bytes) {
        Ok(0) => Ok(Content::Nothing),
        Ok(1..=TEXT_BYTES) => {
            let safe = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let file = File::options().read(true).custom_flags((safe | flags).bits()).open(path)?;
            let mut bytes = Vec::new();
            file.take(TEXT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
            Ok(content(&bytes))
        }
        _ => Ok(Content::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text is read as it was written, a torn one counts as nothing, and another program's is
    /// foreign.
    #[test]
    fn texts() {
        for number in [0, 1, 91, u64::MAX] {
            let text = text(number);
            assert_eq!(text.len(), TEXT_BYTES);
            assert_eq!(content(text.as_bytes()), Content::Fence(number));
            for end in MAGIC.len()..TEXT_BYTES {
                assert_eq!(content(&text.as_bytes()[..end]), Content::Nothing, "torn after {end}");
            }
            let torn = [&text.as_bytes()[..30], &b"9".repeat(TEXT_BYTES - 30)].concat();
            assert_eq!(content(&torn), Content::Nothing);
        }
        assert_eq!(content(b""), Content::Nothing);
        assert_eq!(content(&[0; TEXT_BYTES]), Content::Nothing);
        for foreign in ["x", "my notes", "distrilock fence 00000000000000000091 and more than was ever written here"] {
            assert_eq!(content(foreign.as_bytes()), Content::Foreign, "{foreign}");
        }
    }
}
