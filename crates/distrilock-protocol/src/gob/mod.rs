//! The part of Go's encoding/gob that version 0.1 needs (docs/protocol.md, 8.1).
//!
//! A stream is a sequence of messages, each prefixed by its length, and each a type definition or a
//! value. A sender chooses its own type ids and may send fields that we do not know, so definitions
//! are read generically; they show how to skip the values of unknown fields. Replies have one fixed
//! form.
//!
//! The bytes are not trusted. An announced length is only ever compared with the number of bytes
//! received, every step of a loop consumes a byte, and nesting has a fixed limit. So time and
//! memory depend on the number of bytes received, not on their content.

mod primitive;
mod stream;
mod types;

use std::mem;

use thiserror::Error;

use super::v0::{Outcome, OwnedReply, Reply, Request};
use primitive::{Reader, append_uint, integer_width};
pub use stream::{Decoded, Decoder};

/// Type definitions of one stream. The original's clients send one.
pub const DEFINITIONS_MAX: usize = 64;
/// Fields of one struct type. The original's request has four.
pub const FIELDS_MAX: usize = 128;
/// Levels of nesting in the value of a skipped field, so that skipping cannot exhaust the stack.
pub const DEPTH_MAX: usize = 32;
/// Bytes kept of a value that continues in the next message (see [`Decoder::message`]).
pub const SUSPENDED_BYTES_MAX: usize = 65_536;

/// The definitions of the reply's two types, which precede the first reply of a stream. Type 65 is
/// `LockResponse`, type 66 is the `LockRequest` in its first field.
pub const REPLY_DEFINITIONS: [u8; 164] = *b"\x4e\xff\x81\x03\x01\x01\x0cLockResponse\x01\xff\x82\x00\
    \x01\x04\x01\x0bLockRequest\x01\xff\x84\x00\x01\x06Result\x01\x06\x00\x01\x06Reason\x01\x0c\x00\
    \x01\x08IsLocked\x01\x02\x00\x00\x00\
    \x54\xff\x83\x03\x01\x01\x0bLockRequest\x01\xff\x84\x00\x01\x04\x01\x0cVersionMajor\x01\x06\x00\
    \x01\x0cVersionMinor\x01\x06\x00\x01\x07Command\x01\x06\x00\x01\x08LockName\x01\x0c\x00\x00\x00";

/// The definition of the request's type, which precedes a client's first request: 65.
pub const REQUEST_DEFINITION: [u8; 85] = *b"\x54\xff\x81\x03\x01\x01\x0bLockRequest\x01\xff\x82\x00\
    \x01\x04\x01\x0cVersionMajor\x01\x06\x00\x01\x0cVersionMinor\x01\x06\x00\x01\x07Command\x01\x06\
    \x00\x01\x08LockName\x01\x0c\x00\x00\x00";

/// Why the rest of a stream cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GobError {
    /// A message length starts with a byte that no unsigned integer starts with.
    #[error("a message length cannot start with the byte {0:#04x}")]
    Length(u8),
    /// A message has no content. Go's decoder treats this as the end of the stream.
    #[error("a message of 0 bytes")]
    Empty,
    /// A message exceeds the maximum.
    #[error("a message of {length} bytes is over the maximum of {maximum}")]
    TooLong {
        /// The bytes announced.
        length: u64,
        /// The bytes allowed.
        maximum: usize,
    },
    /// A message does not start with a type id.
    #[error("a message without a type id")]
    TypeId,
    /// A type definition is cut short or defines nothing.
    #[error("a corrupt type definition")]
    Definition,
    /// There are more than [`DEFINITIONS_MAX`] type definitions.
    #[error("more than {DEFINITIONS_MAX} type definitions")]
    TooManyDefinitions,
    /// A struct type has more than [`FIELDS_MAX`] fields.
    #[error("a type of {0} fields, over the maximum of {FIELDS_MAX}")]
    TooManyFields(u64),
}

/// Where the first message of some bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the length prefix.
    pub header: usize,
    /// Bytes of the message after it.
    pub body: usize,
}

/// Finds the first message of `input`; `None` means that more bytes are needed.
///
/// # Errors
///
/// [`GobError`] if no further bytes could make it a message of at most `body_bytes_max`.
pub fn split(input: &[u8], body_bytes_max: usize) -> Result<Option<Frame>, GobError> {
    let Some(&first) = input.first() else {
        return Ok(None);
    };
    let width = integer_width(first).ok_or(GobError::Length(first))?;
    let mut reader = Reader::new(input);
    let Ok(length) = reader.uint() else {
        return Ok(None);
    };
    let header = width + 1;
    match usize::try_from(length) {
        Ok(0) => Err(GobError::Empty),
        Ok(body) if body <= body_bytes_max => Ok((input.len() - header >= body).then_some(Frame { header, body })),
        _ => Err(GobError::TooLong { length, maximum: body_bytes_max }),
    }
}

/// Reads a WebSocket message, which is a stream of its own: definitions, then one value. Anything
/// after that is ignored. `None` means that it gets no reply.
pub fn decode_message(bytes: &[u8], body_bytes_max: usize) -> Option<Request> {
    let mut decoder = Decoder::default();
    let mut rest = bytes;
    loop {
        let Frame { header, body } = split(rest, body_bytes_max).ok()??;
        let (message, after) = rest[header..].split_at(body);
        match decoder.message(message).ok()? {
            Decoded::Definition => rest = after,
            Decoded::Request(request) => return Some(request),
            Decoded::Unanswered => return None,
        }
    }
}

/// Appends `reply` as one message of type 65 of [`REPLY_DEFINITIONS`].
pub fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    append_message(out, |out| {
        // The version is 0.1 and the struct is always sent, so the first two deltas are always 1
        // and 2.
        out.extend_from_slice(b"\xff\x82\x01\x02\x01");
        let mut delta = 1;
        append_uint_field(reply.command.into(), &mut delta, out);
        append_bytes_field(reply.name, &mut delta, out);
        out.push(0);
        delta = 1;
        append_uint_field(reply.outcome as u64, &mut delta, out);
        append_bytes_field(reply.reason.as_bytes(), &mut delta, out);
        append_uint_field(reply.is_locked.into(), &mut delta, out);
        out.push(0);
    });
}

/// Appends `request` as one message of type 65 of [`REQUEST_DEFINITION`].
pub fn encode_request(request: &Request, out: &mut Vec<u8>) {
    append_message(out, |out| {
        out.extend_from_slice(b"\xff\x82");
        let mut delta = 1;
        append_uint_field(request.major.into(), &mut delta, out);
        append_uint_field(request.minor.into(), &mut delta, out);
        append_uint_field(request.command.into(), &mut delta, out);
        append_bytes_field(&request.name, &mut delta, out);
        out.push(0);
    });
}

/// Reads a reply that was sent after [`REPLY_DEFINITIONS`], without its length prefix. A client
/// need not read the definitions: every daemon of version 0.1 sends these.
pub fn decode_reply(body: &[u8]) -> Option<OwnedReply> {
    let mut reader = Reader::new(body);
    let mut reply = OwnedReply {
        command: 0,
        name: Box::default(),
        outcome: Outcome::Failed,
        reason: Box::default(),
        is_locked: false,
    };
    if reader.int().ok()? != 65 {
        return None;
    }
    let (mut next, mut outcome) = (0, None);
    while let Some(index) = reader.field(&mut next).ok()? {
        match index {
            0 => decode_echo(&mut reader, &mut reply)?,
            1 => outcome = Outcome::from_code(reader.byte().ok()?),
            2 => reply.reason = str::from_utf8(reader.bytes().ok()?).ok()?.into(),
            3 => reply.is_locked = reader.uint().ok()? != 0,
            _ => return None,
        }
    }
    reply.outcome = outcome?;
    Some(reply)
}

/// The part of a reply that repeats the request.
fn decode_echo(reader: &mut Reader<'_>, reply: &mut OwnedReply) -> Option<()> {
    let mut next = 0;
    while let Some(index) = reader.field(&mut next).ok()? {
        match index {
            0 | 1 => drop(reader.byte().ok()?),
            2 => reply.command = reader.byte().ok()?,
            3 => reply.name = reader.bytes().ok()?.into(),
            _ => return None,
        }
    }
    Some(())
}

/// Appends what `body` appends, prefixed by its length.
fn append_message(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    body(out);
    let length = out.len() - start - 1;
    match u8::try_from(length) {
        Ok(length @ 0..0x80) => out[start] = length,
        _ => {
            let mut prefix = Vec::with_capacity(9);
            append_uint(length as u64, &mut prefix);
            out.splice(start..=start, prefix);
        }
    }
}

/// Appends a field. A zero is not sent: the delta of the next field grows instead.
fn append_uint_field(number: u64, delta: &mut u8, out: &mut Vec<u8>) {
    if number == 0 {
        *delta += 1;
        return;
    }
    out.push(mem::replace(delta, 1));
    append_uint(number, out);
}

fn append_bytes_field(bytes: &[u8], delta: &mut u8, out: &mut Vec<u8>) {
    if bytes.is_empty() {
        *delta += 1;
        return;
    }
    out.push(mem::replace(delta, 1));
    append_uint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
