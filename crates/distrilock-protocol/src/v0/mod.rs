//! Version 0.1 of the protocol (docs/protocol.md, chapter 8): its messages, and their JSON form.
//!
//! The binary form of the same messages is [`gob`](super::gob)'s. This module decides which JSON
//! text is a request, and spells replies byte for byte as Go's encoding/json does. It does not
//! judge names, commands or versions: the session does.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The command that asks whether a lock is held.
pub const PEEK: u8 = 1;
/// The command that tries to acquire a lock.
pub const ACQUIRE: u8 = 2;
/// The command that releases a lock.
pub const RELEASE: u8 = 3;
/// The command that asks whether the session still holds a lock.
pub const VERIFY: u8 = 4;

/// With [`Outcome::Success`]: the session held the lock before.
pub const NO_OP: &str = "no-op";
/// With [`Outcome::Failed`]: another session of this daemon holds the lock or waits for it.
pub const OTHER_SESSION: &str = "resource acquired through a different session";
/// With [`Outcome::Failed`]: another process holds the lock.
pub const OTHER_PROCESS: &str = "resource acquired by different process";
/// With [`Outcome::Failed`]: nobody holds the lock through this daemon.
pub const NOT_FOUND: &str = "lock not found";
/// With [`Outcome::BadRequest`]: the name is empty or has a character that lock names cannot have.
pub const INVALID_NAME: &str = "invalid lock name";
/// With [`Outcome::BadRequest`]: the command is not one of the four.
pub const UNKNOWN_COMMAND: &str = "unknown command";

/// A request as it was sent. All that has been checked is that it fits its types.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `VersionMajor`; a request with anything but 0 gets no reply.
    pub major: u8,
    /// `VersionMinor`.
    pub minor: u8,
    /// `Command`: [`PEEK`], [`ACQUIRE`], [`RELEASE`], [`VERIFY`], or an unknown one.
    pub command: u8,
    /// `LockName`, which can be any bytes in gob.
    pub name: Box<[u8]>,
}

/// The `Result` of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The state of the lock forbids it.
    Failed = 1,
    /// It is done.
    Success = 2,
    /// The request is not valid.
    BadRequest = 3,
    /// The file system refused the operation.
    InternalError = 4,
}

impl Outcome {
    /// The outcome that `code` means on the wire, if any.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Failed),
            2 => Some(Self::Success),
            3 => Some(Self::BadRequest),
            4 => Some(Self::InternalError),
            _ => None,
        }
    }
}

/// A reply. Its version is always 0.1, whatever the request's was, so it has no member here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The command of the request.
    pub command: u8,
    /// The name of the request, as it was sent.
    pub name: &'a [u8],
    /// `Result`.
    pub outcome: Outcome,
    /// `Reason`: one of this module's constants, the text of a system error, or empty.
    pub reason: &'a str,
    /// `IsLocked`: the answer to [`PEEK`].
    pub is_locked: bool,
}

/// A reply as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedReply {
    /// The command of the request.
    pub command: u8,
    /// The name of the request.
    pub name: Box<[u8]>,
    /// `Result`.
    pub outcome: Outcome,
    /// `Reason`.
    pub reason: Box<str>,
    /// `IsLocked`.
    pub is_locked: bool,
}

/// Reads a request from `text`. `None` means that the original sends no reply.
///
/// The rules are those of Go's `json.Decoder`: names match in any letter case, missing members are
/// zero, unknown ones are ignored, `null` changes nothing, the last occurrence of a repeated member
/// counts, and anything after the first value is not read. Ignored values are skipped without
/// recursion, so that no depth of nesting can exhaust the stack.
pub fn decode_json(text: &[u8]) -> Option<Request> {
    if has_raw_control(text) {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.deserialize_option(Object).ok()
}

/// Whether a string in the first value of `text` has an unescaped control character (RFC 8259,
/// section 7). serde_json does not check this for strings that are read as bytes.
fn has_raw_control(text: &[u8]) -> bool {
    let (mut depth, mut in_string, mut in_escape) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if in_escape => in_escape = false,
            b'\\' => in_escape = in_string,
            b'"' => in_string = !in_string,
            0..0x20 if in_string => return true,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string && depth <= 1 => return false,
            b'}' | b']' if !in_string => depth -= 1,
            _ => (),
        }
    }
    false
}

/// Appends `reply` as one line: all seven members, always in this order.
pub fn encode_json(reply: &Reply<'_>, out: &mut Vec<u8>) {
    encode_request_members(0, 1, reply.command, reply.name, out);
    out.extend_from_slice(b",\"Result\":");
    push_number(reply.outcome as u8, out);
    out.extend_from_slice(b",\"Reason\":");
    push_string(reply.reason.as_bytes(), out);
    out.extend_from_slice(b",\"IsLocked\":");
    out.extend_from_slice(if reply.is_locked { b"true" } else { b"false" });
    out.extend_from_slice(b"}\n");
}

/// Appends `request` as one line, spelled as the original's client spells it.
pub fn encode_json_request(request: &Request, out: &mut Vec<u8>) {
    let Request { major, minor, command, name } = request;
    encode_request_members(*major, *minor, *command, name, out);
    out.extend_from_slice(b"}\n");
}

/// Appends the members that requests and replies share, after the opening brace.
fn encode_request_members(major: u8, minor: u8, command: u8, name: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"VersionMajor\":");
    push_number(major, out);
    out.extend_from_slice(b",\"VersionMinor\":");
    push_number(minor, out);
    out.extend_from_slice(b",\"Command\":");
    push_number(command, out);
    out.extend_from_slice(b",\"LockName\":");
    push_string(name, out);
}

fn push_number(number: u8, out: &mut Vec<u8>) {
    if number >= 100 {
        out.push(b'0' + number / 100);
    }
    if number >= 10 {
        out.push(b'0' + number / 10 % 10);
    }
    out.push(b'0' + number % 10);
}

/// Appends a JSON string with the escapes of Go 1.19. They keep the text safe in HTML and
/// JavaScript, and spell a byte that is not UTF-8 as `\ufffd`.
fn push_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        push_valid(chunk.valid(), out);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

fn push_valid(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, character) in text.char_indices() {
        let escape: &[u8] = match character {
            '"' => b"\\\"",
            '\\' => b"\\\\",
            '\n' => b"\\n",
            '\r' => b"\\r",
            '\t' => b"\\t",
            '\u{2028}' => b"\\u2028",
            '\u{2029}' => b"\\u2029",
            '<' | '>' | '&' | '\0'..='\x1f' => &escaped(bytes[at]),
            _ => continue,
        };
        out.extend_from_slice(&bytes[written..at]);
        out.extend_from_slice(escape);
        written = at + character.len_utf8();
    }
    out.extend_from_slice(&bytes[written..]);
}

fn escaped(byte: u8) -> [u8; 6] {
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    [b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 0xf)]
}

/// The top of the text: an object, or `null` for an empty one.
struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Request;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a request of version 0.1")
    }

    fn visit_none<E>(self) -> Result<Request, E> {
        Ok(Request::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Request, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request, A::Error> {
        let mut request = Request::default();
        while let Some(member) = map.next_key::<Member>()? {
            let number = match member {
                Member::Major => &mut request.major,
                Member::Minor => &mut request.minor,
                Member::Command => &mut request.command,
                Member::Name => {
                    if let Some(Text(name)) = map.next_value()? {
                        request.name = name;
                    }
                    continue;
                }
                Member::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if let Some(sent) = map.next_value()? {
                *number = sent;
            }
        }
        Ok(request)
    }
}

/// Which member a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Major,
    Minor,
    Command,
    Name,
    Unknown,
}

impl Member {
    const NAMES: [(&'static str, Self); 4] = [
        ("versionmajor", Self::Major),
        ("versionminor", Self::Minor),
        ("command", Self::Command),
        ("lockname", Self::Name),
    ];

    /// Folds letter case as Go does, by Unicode's simple folding: apart from capital letters, the
    /// Kelvin sign counts as `k` and the long s as `s`.
    fn from_key(key: &[u8]) -> Self {
        let Ok(key) = str::from_utf8(key) else {
            return Self::Unknown;
        };
        let folded = |character: char| match character {
            '\u{212a}' => 'k',
            '\u{17f}' => 's',
            other => other.to_ascii_lowercase(),
        };
        let known = Self::NAMES.iter().find(|(name, _)| key.chars().map(folded).eq(name.chars()));
        known.map_or(Self::Unknown, |(_, member)| *member)
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;

        impl Visitor<'_> for Key {
            type Value = Member;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of a member")
            }

            fn visit_str<E>(self, key: &str) -> Result<Member, E> {
                Ok(Member::from_key(key.as_bytes()))
            }

            fn visit_bytes<E>(self, key: &[u8]) -> Result<Member, E> {
                Ok(Member::from_key(key))
            }
        }

        deserializer.deserialize_bytes(Key)
    }
}

/// A string value. It is read as bytes, because serde_json refuses a string with half a surrogate
/// pair, while Go replaces that half.
struct Text(Box<[u8]>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.as_bytes().into()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(replaced(bytes)))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// `bytes` as UTF-8, with one U+FFFD for every half of a surrogate pair (which serde_json encodes
/// like a character, in three bytes from ED A0 80 on) and for every other byte that is not UTF-8.
fn replaced(bytes: &[u8]) -> Box<[u8]> {
    if str::from_utf8(bytes).is_ok() {
        return bytes.into();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(chunk) = rest.utf8_chunks().next() {
        out.extend_from_slice(chunk.valid().as_bytes());
        rest = &rest[chunk.valid().len()..];
        if chunk.invalid().is_empty() {
            break;
        }
        out.extend_from_slice("\u{fffd}".as_bytes());
        let is_surrogate = matches!(rest, [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..]);
        rest = &rest[if is_surrogate { 3 } else { 1 }..];
    }
    out.into()
}

#[cfg(test)]
mod tests;
