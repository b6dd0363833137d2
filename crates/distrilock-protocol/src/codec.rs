//! Bytes to messages and back, without a socket. A [`Codec`] is the state of one connection: its
//! framing (lines, a gob stream, WebSocket frames), and the version of the protocol that its peer
//! speaks.

use std::io::BufRead;

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::limits::FRAME_BYTES_MAX;
use crate::name::LockName;
use crate::violation::Violation;
use crate::websocket::{Frame, WebSocket};
use crate::{gob, v0, v1};

/// A message, as far as it concerns a session.
#[derive(Debug)]
pub enum Incoming {
    /// A request of version 0.1, and how its reply is written.
    V0(v0::Request, Form),
    /// A request of version 1, or why it is rejected.
    V1(Result<v1::Request, v1::Rejected>),
    /// Nothing that needs an answer.
    Nothing,
    /// The peer says goodbye.
    Closed,
}

/// How a reply of version 0.1 is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// In the connection's gob stream.
    GobStream,
    /// As a gob stream of its own in a binary message.
    GobMessage,
    /// As a JSON object.
    Json,
}

/// What a peer speaks, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words of `Dialect::word` say it")]
pub enum Dialect {
    Unknown,
    GobTcp,
    GobWebSocket,
    JsonV0,
    JsonV1,
}

impl Dialect {
    /// The word for logs, as in DIALECT=.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::GobTcp => "v0.1-gob-tcp",
            Self::GobWebSocket => "v0.1-gob-websocket",
            Self::JsonV0 => "v0.1-json",
            Self::JsonV1 => "v1",
        }
    }
}

/// One connection's framing and dialect.
#[derive(Debug)]
pub struct Codec {
    pub(crate) framing: Framing,
    pub(crate) dialect: Dialect,
}

#[derive(Debug)]
pub(crate) enum Framing {
    /// A byte stream whose first bytes have not come yet.
    Unknown,
    /// JSON, one object per line. The first `searched` bytes of the current line have no LF.
    /// `begun` says that an object has come.
    Lines { searched: usize, begun: bool },
    /// The original's stream, and whether the definitions of the replies have been sent.
    Gob { decoder: Box<gob::Decoder>, defined: bool },
    /// One message per frame, or per several frames.
    WebSocket(Box<WebSocket>),
}

impl Codec {
    /// A TCP or Unix connection.
    #[must_use]
    pub fn stream() -> Self {
        Self { framing: Framing::Unknown, dialect: Dialect::Unknown }
    }

    /// A WebSocket connection after its handshake.
    #[must_use]
    pub fn websocket() -> Self {
        Self { framing: Framing::WebSocket(Box::default()), dialect: Dialect::Unknown }
    }

    /// What the peer speaks.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Takes the first message of `input`, if all of it is there, and returns how many bytes it
    /// has. Answers that belong to the framing (a pong) go to `out`.
    ///
    /// # Errors
    /// The peer broke the protocol; on WebSocket the close frame is in `out` already.
    pub fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, Incoming)>, Violation> {
        match &mut self.framing {
            Framing::Unknown => {
                let Some(framing) = Framing::of(input) else { return Ok(None) };
                self.framing = framing;
                self.next(input, out)
            }
            Framing::Lines { searched, begun } => {
                let Some(end) = line_end(&input[*searched..]) else {
                    *searched = input.len();
                    return within_limit(input.len()).map(|()| None);
                };
                let end = *searched + end;
                *searched = 0;
                within_limit(end)?;
                let line = input[..end].trim_ascii();
                *begun |= line.starts_with(b"{");
                if !*begun && line.starts_with(BYTE_ORDER_MARK) {
                    return Err(Violation::ByteOrderMark);
                }
                if !*begun && !line.is_empty() {
                    return Err(Violation::NotJson);
                }
                Ok(Some((end + 1, self.text(line, false))))
            }
            Framing::Gob { decoder, .. } => {
                self.dialect = Dialect::GobTcp;
                let Some(frame) = gob::split(input, FRAME_BYTES_MAX)? else { return Ok(None) };
                let end = frame.header + frame.body;
                let incoming = match decoder.message(&input[frame.header..end])? {
                    gob::Decoded::Request(request) => Incoming::V0(request, Form::GobStream),
                    gob::Decoded::Definition | gob::Decoded::Unanswered => Incoming::Nothing,
                };
                Ok(Some((end, incoming)))
            }
            Framing::WebSocket(socket) => {
                let Some((end, frame)) = socket.next(input, out)? else { return Ok(None) };
                let incoming = match frame {
                    Frame::Text(text) => self.text(text.as_bytes(), true),
                    Frame::Binary(bytes) => self.binary(&bytes),
                    Frame::Nothing => Incoming::Nothing,
                    Frame::Closed => Incoming::Closed,
                };
                Ok(Some((end, incoming)))
            }
        }
    }

    fn binary(&mut self, bytes: &[u8]) -> Incoming {
        self.dialect = Dialect::GobWebSocket;
        match gob::decode_message(bytes, FRAME_BYTES_MAX) {
            Some(request) => Incoming::V0(request, Form::GobMessage),
            None => Incoming::Nothing,
        }
    }

    /// Determines the version of a JSON object from its members: `op` makes it version 1. The
    /// original's WebSocket clients get no answer to anything that is not JSON, and their empty
    /// object is a request.
    fn text(&mut self, text: &[u8], websocket: bool) -> Incoming {
        if text.trim_ascii().is_empty() {
            return Incoming::Nothing;
        }
        let rejected = match v1::decode(text) {
            Ok(request) => {
                self.dialect = Dialect::JsonV1;
                return Incoming::V1(Ok(request));
            }
            Err(rejected) => rejected,
        };
        let old = websocket && self.dialect != Dialect::JsonV1;
        let request = if v1::has_op(text) { None } else { v0::decode_json(text) };
        match request {
            Some(request) if old || request != v0::Request::default() => {
                self.dialect = Dialect::JsonV0;
                Incoming::V0(request, Form::Json)
            }
            None if old && !v1::has_op(text) => Incoming::Nothing,
            _ => {
                self.dialect = Dialect::JsonV1;
                Incoming::V1(Err(rejected))
            }
        }
    }

    /// Appends a reply of version 0.1.
    pub fn reply_v0(&mut self, form: Form, reply: &v0::Reply<'_>, out: &mut Vec<u8>) {
        match (&mut self.framing, form) {
            (Framing::Gob { defined, .. }, _) => {
                if !std::mem::replace(defined, true) {
                    out.extend_from_slice(&gob::REPLY_DEFINITIONS);
                }
                gob::encode_reply(reply, out);
            }
            (Framing::WebSocket(socket), Form::Json) => socket.send(true, out, |out| v0::encode_json(reply, out)),
            (Framing::WebSocket(socket), _) => socket.send(false, out, |out| {
                out.extend_from_slice(&gob::REPLY_DEFINITIONS);
                gob::encode_reply(reply, out);
            }),
            (Framing::Lines { .. } | Framing::Unknown, _) => v0::encode_json(reply, out),
        }
    }

    /// Appends a reply or an event of version 1. A gob stream has no room for one.
    pub fn send_v1(&mut self, message: &impl Serialize, out: &mut Vec<u8>) {
        self.send_text(out, |out| write_v1(message, out));
    }

    /// Appends the reply of version 1 that says yes about a lock, and nothing more.
    pub fn send_yes(&mut self, id: Option<&v1::Id>, lock: &LockName, out: &mut Vec<u8>) {
        self.send_text(out, |out| {
            if !v1::plain::encode_yes(id, lock, out) {
                write_v1(&v1::Reply::yes(id, v1::Grant::of(lock)), out);
            }
        });
    }

    fn send_text(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        match &mut self.framing {
            Framing::Gob { .. } => {}
            Framing::WebSocket(socket) => socket.send(true, out, write),
            Framing::Lines { .. } | Framing::Unknown => {
                write(out);
                out.push(b'\n');
            }
        }
    }

    /// Appends what the framing sends at the end of a session, with the reason.
    pub fn end(&mut self, end: CloseCode, reason: &str, out: &mut Vec<u8>) {
        if let Framing::WebSocket(socket) = &mut self.framing {
            socket.close(end, reason, out);
        }
    }

    /// Appends what a peer that broke the protocol is told.
    pub fn violated(&mut self, violation: &Violation, out: &mut Vec<u8>) {
        match (&self.framing, violation) {
            (Framing::WebSocket(_), _) => self.end(CloseCode::Policy, &violation.to_string(), out),
            (_, Violation::TooLong { .. } | Violation::NotJson | Violation::ByteOrderMark) => {
                let too_long = matches!(violation, Violation::TooLong { .. });
                let error = if too_long { v1::ErrorWord::Limit } else { v1::ErrorWord::BadRequest };
                self.send_v1(&v1::Reply::no(None, v1::Refusal::new(error, violation.to_string())), out);
            }
            _ => {}
        }
    }
}

fn write_v1(message: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, message).expect("replies and events are plain values, and memory takes them");
}

impl Framing {
    /// No gob stream begins like text: its first message is a type definition, and the first byte
    /// of that is 0xF8 or more, or it is ASCII and the second byte is not. Other first bytes, such
    /// as those of a byte order mark, are those of wrong text. `None` means that there are too few
    /// bytes to tell.
    fn of(input: &[u8]) -> Option<Self> {
        let gob = match input {
            [] => return None,
            [first, ..] if *first >= 0xf8 => true,
            [first, ..] if *first >= 0x80 => false,
            [_] => return None,
            [_, second, ..] => *second >= 0x80,
        };
        let stream = Self::Gob { decoder: Box::default(), defined: false };
        Some(if gob { stream } else { Self::Lines { searched: 0, begun: false } })
    }
}

/// Where the first line ends.
fn line_end(mut bytes: &[u8]) -> Option<usize> {
    // The standard library searches many bytes at a time.
    let whole = bytes;
    let line = bytes.skip_until(b'\n').expect("reading from memory does not fail");
    line.checked_sub(1).filter(|end| whole[*end] == b'\n')
}

/// U+FEFF in UTF-8. JSON text must not begin with it (RFC 8259, section 8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn within_limit(bytes: usize) -> Result<(), Violation> {
    if bytes <= FRAME_BYTES_MAX { Ok(()) } else { Err(Violation::TooLong { bytes: bytes as u64 }) }
}
