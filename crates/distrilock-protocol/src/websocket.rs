//! WebSocket frames (RFC 6455), without a socket: bytes in, messages and answering bytes out.
//! tungstenite applies the rules. This module hands it one whole frame at a time, so that it never
//! buffers, and a session costs next to nothing between two messages.

use std::io::{self, Cursor, Read, Write};

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, FrameHeader};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message, Utf8Bytes};

use crate::limits::FRAME_BYTES_MAX;
use crate::violation::Violation;

/// The state of one WebSocket connection after its handshake.
#[derive(Debug)]
pub struct WebSocket {
    context: WebSocketContext,
    /// The message whose first fragments have come, for the next process of the daemon. tungstenite
    /// has it too, but does not show it.
    partial: Option<Partial>,
}

/// A message some of whose fragments have not come yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    text: bool,
    payload: Vec<u8>,
}

/// The content of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The end of a text message.
    Text(Utf8Bytes),
    /// The end of a binary message.
    Binary(Bytes),
    /// Part of a message, or a ping or pong. A ping has been answered.
    Nothing,
    /// The peer closes. Its close frame has been answered.
    Closed,
}

/// What tungstenite uses as its stream: one frame to read, and room for its answers.
struct Exchange<'a> {
    frame: &'a [u8],
    out: &'a mut Vec<u8>,
}

impl Read for Exchange<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.frame.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.frame.read(into) }
    }
}

impl Write for Exchange<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WebSocket {
    /// A connection whose handshake is done.
    #[must_use]
    pub fn new() -> Self {
        // Buffers are allocated only once a frame is there. A message may be as long as a frame.
        let config = WebSocketConfig::default()
            .read_buffer_size(0)
            .write_buffer_size(0)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        Self { context: WebSocketContext::new(Role::Server, Some(config)), partial: None }
    }

    /// The same connection in the next process of the daemon.
    #[must_use]
    pub fn taken_over(partial: Option<Partial>) -> Self {
        let mut socket = Self::new();
        if let Some(Partial { text, payload }) = partial {
            let mut frame = Vec::new();
            let opcode = OpCode::Data(if text { Data::Text } else { Data::Binary });
            let header = FrameHeader { is_final: false, opcode, mask: Some([0; 4]), ..FrameHeader::default() };
            header.format(payload.len() as u64, &mut frame).expect("writing to memory does not fail");
            frame.extend_from_slice(&payload);
            // If the fragments do not fit together, the next frame ends the session.
            let _ = socket.next(&frame, &mut Vec::new());
        }
        socket
    }

    /// The message some of whose fragments have not come yet, if there is one.
    #[must_use]
    pub fn partial(&self) -> Option<&Partial> {
        self.partial.as_ref()
    }

    /// Takes the first frame of `input`, if all of it is there, and returns how many bytes it has.
    /// Answers go to `out`.
    ///
    /// # Errors
    /// The peer broke RFC 6455 or exceeded the limit. The close frame that says so is in `out`.
    pub fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, Frame)>, Violation> {
        let mut cursor = Cursor::new(input);
        let header = match FrameHeader::parse(&mut cursor) {
            Ok(None) => return Ok(None),
            Ok(Some(header)) => header,
            Err(error) => return Err(self.violated(&error, out)),
        };
        let (head, length) = header;
        let header = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let whole = usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let Some(whole) = whole.map(|length| header + length) else {
            let violation = Violation::TooLong { bytes: length };
            self.close(CloseCode::Size, &violation.to_string(), out);
            return Err(violation);
        };
        // tungstenite checks a control frame's length, the reserved bits and the mask along with
        // the payload, which is short.
        let Some(frame) = input.get(..whole) else { return Ok(None) };
        self.note(&head, &frame[header..]);
        match self.context.read(&mut Exchange { frame, out: &mut *out }) {
            Ok(Message::Text(text)) => Ok(Some((whole, Frame::Text(text)))),
            Ok(Message::Binary(bytes)) => Ok(Some((whole, Frame::Binary(bytes)))),
            Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => {
                self.flush(out);
                Ok(Some((whole, Frame::Closed)))
            }
            Ok(_) => {
                self.flush(out);
                Ok(Some((whole, Frame::Nothing)))
            }
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Some((whole, Frame::Nothing)))
            }
            Err(error) => Err(self.violated(&error, out)),
        }
    }

    /// Keeps what a frame adds to a message of several frames.
    fn note(&mut self, head: &FrameHeader, payload: &[u8]) {
        let OpCode::Data(data) = head.opcode else { return };
        if head.is_final {
            self.partial = None;
            return;
        }
        if data != Data::Continue {
            self.partial = Some(Partial { text: data == Data::Text, payload: Vec::new() });
        }
        if let Some(partial) = &mut self.partial {
            let mask = head.mask.unwrap_or_default();
            partial.payload.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
    }

    /// Appends a message that `fill` writes.
    pub fn send(&mut self, text: bool, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        if !self.context.can_write() {
            return;
        }
        // The length precedes the payload and depends on it: leave room for the longest header,
        // then close the gap.
        const HEADER_BYTES_MAX: usize = 10;
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES_MAX]);
        fill(out);
        let length = out.len() - start - HEADER_BYTES_MAX;
        let opcode = OpCode::Data(if text { Data::Text } else { Data::Binary });
        let header = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
        let header_length = header.len(length as u64);
        let mut bytes = [0; HEADER_BYTES_MAX];
        header.format(length as u64, &mut &mut bytes[..]).expect("a header without a mask has at most 10 bytes");
        let gap = HEADER_BYTES_MAX - header_length;
        out[start + gap..start + HEADER_BYTES_MAX].copy_from_slice(&bytes[..header_length]);
        out.drain(start..start + gap);
    }

    /// Appends a close frame.
    pub fn close(&mut self, code: CloseCode, reason: &str, out: &mut Vec<u8>) {
        // A close frame has at most 125 bytes, two of them the code (RFC 6455, section 5.5).
        let fits = (0..=123).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or_default();
        let reason = Utf8Bytes::from(&reason[..fits]);
        let frame = Some(CloseFrame { code, reason });
        // This can only fail if the connection is closed already.
        let _ = self.context.close(&mut Exchange { frame: &[], out: &mut *out }, frame);
        self.flush(out);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = self.context.flush(&mut Exchange { frame: &[], out });
    }

    fn violated(&mut self, error: &tungstenite::Error, out: &mut Vec<u8>) -> Violation {
        let code = match error {
            tungstenite::Error::Capacity(_) => CloseCode::Size,
            tungstenite::Error::Utf8(_) => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        };
        let violation = Violation::WebSocket(error.to_string());
        self.close(code, &violation.to_string(), out);
        violation
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self::new()
    }
}
