//! Lock names. A [`LockName`] is valid by construction, so it can go into a path, a log line or a
//! reply without another check.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest lock name in bytes: `NAME.lck` has to fit into a file name of 255 bytes (NAME_MAX in
/// limits.h).
pub const NAME_BYTES_MAX: usize = 251;

/// The name of a lock: 1 to 251 bytes of `[A-Za-z0-9._-]`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(Arc<str>);

/// Why bytes are not a lock name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("a lock name must not be empty")]
    Empty,
    /// It has a byte that lock names cannot have. The position counts from 0.
    #[error(
        "a lock name consists of A-Z a-z 0-9 . _ - only; byte {position} is {}",
        Shown(*byte)
    )]
    Byte {
        /// Where it is.
        position: usize,
        /// The byte.
        byte: u8,
    },
    /// It has more bytes than a file name can hold.
    #[error("a lock name has at most {NAME_BYTES_MAX} bytes; this one has {bytes}")]
    TooLong {
        /// The length of the name.
        bytes: usize,
    },
}

struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            byte @ 0x21..=0x7e => write!(f, "'{}'", char::from(byte)),
            byte => write!(f, "0x{byte:02x}"),
        }
    }
}

impl LockName {
    /// Checks the bytes of a name as a peer sent them.
    ///
    /// # Errors
    /// The first rule that the bytes break; characters come before the length.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        let stranger = |byte: &u8| !matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if let Some(position) = bytes.iter().position(stranger) {
            return Err(NameError::Byte { position, byte: bytes[position] });
        }
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).expect("the bytes of a lock name are ASCII");
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for LockName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LockName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).map_err(de::Error::custom)
    }
}

impl std::borrow::Borrow<str> for LockName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The original's pattern is `[A-Za-z0-9._-]+` in full: dots alone are fine, a trailing newline
    /// is not.
    #[test]
    fn the_original_pattern_holds() {
        for good in ["a", ".", "..", "-", "A.b_c-9", &"x".repeat(251)] {
            assert_eq!(LockName::parse(good.as_bytes()).unwrap().as_str(), good);
        }
        assert_eq!(LockName::parse(b""), Err(NameError::Empty));
        assert_eq!(LockName::parse(&[b'x'; 252]), Err(NameError::TooLong { bytes: 252 }));
        for (bad, position, byte) in
            [(&b"a/b"[..], 1, b'/'), (b"a\n", 1, b'\n'), (b"\0", 0, 0), (b"a b", 1, b' '), (b"\xc3\xa4", 0, 0xc3)]
        {
            assert_eq!(LockName::parse(bad), Err(NameError::Byte { position, byte }));
        }
        assert_eq!(
            LockName::parse(b"a\n").unwrap_err().to_string(),
            "a lock name consists of A-Z a-z 0-9 . _ - only; byte 1 is 0x0a"
        );
    }
}
