//! The bytes of every dialect: what a session sends for an acquire and a release, and what must
//! come back.
//!
//! Requests and replies are built once for each connection; a cold run only overwrites the lock
//! name in them. The load generator neither formats nor parses anything while it measures, and
//! still compares every byte of every reply.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

/// All lock names of the benchmark have the same length, so that one can be written over another.
pub(crate) const NAME_BYTES: usize = 15;

/// A lock name of the benchmark.
pub(crate) type Name = [u8; NAME_BYTES];

/// The lock name with this number: `load-0000000042`.
pub(crate) fn numbered_name(mut number: u64) -> Name {
    let mut name = *b"load-0000000000";
    for digit in name[5..].iter_mut().rev() {
        *digit += u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
    name
}

/// A protocol, and the server that speaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dialect {
    /// The reference: SET NX PX and DEL to a redis-server.
    Redis,
    /// The bare server of this benchmark, in the words of `V1Tcp`.
    Floor,
    /// Version 1, JSON lines over TCP.
    V1Tcp,
    /// Version 0.1, a gob stream over TCP.
    GobTcp,
    /// Version 1, JSON in WebSocket text messages.
    V1Ws,
    /// Version 0.1, JSON in WebSocket text messages.
    JsonWs,
    /// Version 0.1, gob in WebSocket binary messages, with the definitions in each of them.
    GobWs,
}

/// The two halves of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Acquire,
    Release,
}

/// What the bytes received so far mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    /// Another connection holds the lock: the request has to be sent again.
    Busy,
    /// The beginning of an expected reply.
    Partial,
    Wrong,
}

/// A request and the replies that may follow it.
pub(crate) struct Exchange {
    request: Template,
    success: Template,
    busy: Option<Template>,
}

impl Exchange {
    pub(crate) fn request(&self) -> &[u8] {
        &self.request.bytes
    }

    /// Compares all received bytes: a reply with one byte too many is wrong, too.
    pub(crate) fn judge(&self, received: &[u8]) -> Answer {
        let busy = self.busy.as_ref().map_or(&[][..], |busy| &busy.bytes);
        if received == self.success.bytes {
            Answer::Success
        } else if received == busy {
            Answer::Busy
        } else if self.success.bytes.starts_with(received) || busy.starts_with(received) {
            Answer::Partial
        } else {
            Answer::Wrong
        }
    }

    /// Writes another name over the one in the request and in the expected replies.
    pub(crate) fn rename(&mut self, name: &Name) {
        self.request.rename(name);
        self.success.rename(name);
        if let Some(busy) = &mut self.busy {
            busy.rename(name);
        }
    }

    /// Sends the request on a blocking stream and waits for its success.
    pub(crate) fn complete(&self, stream: &mut TcpStream) -> Result<()> {
        stream.write_all(self.request())?;
        let mut received = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let count = stream.read(&mut buffer).context("no reply")?;
            ensure!(count > 0, "the server closed the connection");
            received.extend_from_slice(&buffer[..count]);
            match self.judge(&received) {
                Answer::Success => return Ok(()),
                Answer::Partial => {}
                Answer::Busy | Answer::Wrong => bail!("unexpected reply {:?}", String::from_utf8_lossy(&received)),
            }
        }
    }
}

/// Bytes with at most one lock name in them, possibly masked, as RFC 6455, section 5.3, requires of
/// clients.
struct Template {
    bytes: Vec<u8>,
    name_at: Option<usize>,
    mask: [u8; 4],
    payload_at: usize,
}

impl Template {
    fn plain(bytes: Vec<u8>, name: &Name) -> Self {
        let name_at = bytes.windows(NAME_BYTES).position(|window| window == name);
        Self { bytes, name_at, mask: [0; 4], payload_at: 0 }
    }

    /// One unfragmented frame of RFC 6455, section 5.2. Clients mask, servers do not.
    fn frame(opcode: u8, payload: &[u8], name: &Name, mask: Option<[u8; 4]>) -> Self {
        let mask_bit = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(short) if short < 126 => bytes.push(mask_bit | short),
            _ => {
                let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        bytes.extend(mask.iter().flatten());
        let payload_at = bytes.len();
        bytes.extend_from_slice(payload);
        let mut template = Self { payload_at, mask: mask.unwrap_or_default(), ..Self::plain(bytes, name) };
        for at in payload_at..template.bytes.len() {
            template.bytes[at] ^= template.mask_at(at);
        }
        template
    }

    fn mask_at(&self, at: usize) -> u8 {
        self.mask[(at - self.payload_at) % 4]
    }

    fn rename(&mut self, name: &Name) {
        let Some(name_at) = self.name_at else { return };
        for (at, byte) in (name_at..).zip(name) {
            self.bytes[at] = byte ^ self.mask_at(at);
        }
    }
}

/// RFC 6455 requires an unpredictable mask because of caches in the middle; a benchmark only needs
/// one that is not zero.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: u8 = 1;
const BINARY: u8 = 2;

impl Dialect {
    /// The dialect's name in tables and on the command line.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Floor => "floor",
            Self::V1Tcp => "v1-tcp",
            Self::GobTcp => "gob-tcp",
            Self::V1Ws => "v1-ws",
            Self::JsonWs => "json-ws",
            Self::GobWs => "gob-ws",
        }
    }

    /// Whether it is spoken with the daemon.
    pub(crate) fn is_daemon(self) -> bool {
        !matches!(self, Self::Redis | Self::Floor)
    }

    /// Whether the dialect's sessions are opened on the WebSocket port.
    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::V1Ws | Self::JsonWs | Self::GobWs)
    }

    /// The bytes of one half of a pair on the lock `name`. With `wait`, version 1 waits in the
    /// queue instead of trying.
    pub(crate) fn exchange(self, verb: Verb, name: &Name, wait: bool) -> Exchange {
        match self {
            Self::Redis => redis(verb, name),
            Self::Floor | Self::V1Tcp | Self::V1Ws => self.version_1(verb, name, wait),
            Self::JsonWs => json_0_1(verb, name),
            Self::GobTcp | Self::GobWs => self.gob(verb, name),
        }
    }

    /// What has to be exchanged on a new connection before its first pair.
    pub(crate) fn open(self, stream: &mut TcpStream) -> Result<()> {
        if self.is_websocket() {
            return upgrade(stream);
        }
        if self == Self::GobTcp {
            return gob_definitions(stream);
        }
        Ok(())
    }

    fn version_1(self, verb: Verb, name: &Name, wait: bool) -> Exchange {
        let lock = String::from_utf8_lossy(name);
        let (request, success) = match verb {
            Verb::Acquire if wait => (
                format!(r#"{{"id":1,"op":"acquire","lock":"{lock}","wait_ms":null}}"#),
                format!(r#"{{"id":1,"ok":true,"lock":"{lock}"}}"#),
            ),
            Verb::Acquire => (
                format!(r#"{{"id":1,"op":"acquire","lock":"{lock}"}}"#),
                format!(r#"{{"id":1,"ok":true,"lock":"{lock}"}}"#),
            ),
            Verb::Release => (
                format!(r#"{{"id":2,"op":"release","lock":"{lock}"}}"#),
                format!(r#"{{"id":2,"ok":true,"lock":"{lock}"}}"#),
            ),
        };
        if self == Self::V1Ws {
            Exchange {
                request: Template::frame(TEXT, request.as_bytes(), name, Some(MASK)),
                success: Template::frame(TEXT, success.as_bytes(), name, None),
                busy: None,
            }
        } else {
            Exchange {
                request: Template::plain((request + "\n").into_bytes(), name),
                success: Template::plain((success + "\n").into_bytes(), name),
                busy: None,
            }
        }
    }

    fn gob(self, verb: Verb, name: &Name) -> Exchange {
        let command = verb.command();
        let request = gob_request(command, name);
        let success = gob_reply(command, name, SUCCESS, b"");
        let busy = gob_reply(command, name, FAILED, BUSY.as_bytes());
        if self == Self::GobTcp {
            return Exchange {
                request: Template::plain(request, name),
                success: Template::plain(success, name),
                busy: verb.may_be_busy(|| Template::plain(busy, name)),
            };
        }
        let reply = |value: Vec<u8>| [REPLY_DEFINITIONS, REQUEST_IN_REPLY_DEFINITION, &value].concat();
        Exchange {
            request: Template::frame(BINARY, &[REQUEST_DEFINITION, &request].concat(), name, Some(MASK)),
            success: Template::frame(BINARY, &reply(success), name, None),
            busy: verb.may_be_busy(|| Template::frame(BINARY, &reply(busy), name, None)),
        }
    }
}

impl Verb {
    /// The number of the command in version 0.1.
    fn command(self) -> u8 {
        match self {
            Self::Acquire => 2,
            Self::Release => 3,
        }
    }

    fn may_be_busy(self, busy: impl FnOnce() -> Template) -> Option<Template> {
        (self == Self::Acquire).then(busy)
    }
}

fn redis(verb: Verb, name: &Name) -> Exchange {
    let key = String::from_utf8_lossy(name);
    let key = format!("${NAME_BYTES}\r\n{key}\r\n");
    let (request, success) = match verb {
        Verb::Acquire => {
            (format!("*6\r\n$3\r\nSET\r\n{key}$5\r\nowner\r\n$2\r\nNX\r\n$2\r\nPX\r\n$5\r\n30000\r\n"), "+OK\r\n")
        }
        Verb::Release => (format!("*2\r\n$3\r\nDEL\r\n{key}"), ":1\r\n"),
    };
    Exchange {
        request: Template::plain(request.into_bytes(), name),
        success: Template::plain(success.into(), name),
        busy: verb.may_be_busy(|| Template::plain(b"$-1\r\n".to_vec(), name)),
    }
}

fn json_0_1(verb: Verb, name: &Name) -> Exchange {
    let lock = String::from_utf8_lossy(name);
    let command = verb.command();
    let members = format!(r#"{{"VersionMajor":0,"VersionMinor":1,"Command":{command},"LockName":"{lock}""#);
    let request = format!("{members}}}\n");
    let success = format!("{members},\"Result\":{SUCCESS},\"Reason\":\"\",\"IsLocked\":false}}\n");
    let busy = format!("{members},\"Result\":{FAILED},\"Reason\":\"{BUSY}\",\"IsLocked\":false}}\n");
    Exchange {
        request: Template::frame(TEXT, request.as_bytes(), name, Some(MASK)),
        success: Template::frame(TEXT, success.as_bytes(), name, None),
        busy: verb.may_be_busy(|| Template::frame(TEXT, busy.as_bytes(), name, None)),
    }
}

const FAILED: u8 = 1;
const SUCCESS: u8 = 2;
const PEEK: u8 = 1;
const BUSY: &str = "resource acquired through a different session";

/// The definition of a request, as Go's encoding/gob writes it (docs/protocol.md, 8.1).
const REQUEST_DEFINITION: &[u8] = b"\x54\xff\x81\x03\x01\x01\x0bLockRequest\x01\xff\x82\x00\x01\x04\
    \x01\x0cVersionMajor\x01\x06\x00\x01\x0cVersionMinor\x01\x06\x00\
    \x01\x07Command\x01\x06\x00\x01\x08LockName\x01\x0c\x00\x00\x00";

const REPLY_DEFINITIONS: &[u8] = b"\x4e\xff\x81\x03\x01\x01\x0cLockResponse\x01\xff\x82\x00\x01\x04\
    \x01\x0bLockRequest\x01\xff\x84\x00\x01\x06Result\x01\x06\x00\
    \x01\x06Reason\x01\x0c\x00\x01\x08IsLocked\x01\x02\x00\x00\x00";

const REQUEST_IN_REPLY_DEFINITION: &[u8] = b"\x54\xff\x83\x03\x01\x01\x0bLockRequest\x01\xff\x84\x00\x01\x04\
    \x01\x0cVersionMajor\x01\x06\x00\x01\x0cVersionMinor\x01\x06\x00\
    \x01\x07Command\x01\x06\x00\x01\x08LockName\x01\x0c\x00\x00\x00";

/// A gob message. All messages of the benchmark are shorter than 128 bytes, so that the length is
/// one byte.
fn gob_message(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    debug_assert!(body.len() < 128);
    [&[u8::try_from(body.len()).unwrap_or_default()], &body[..]].concat()
}

fn gob_text(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap_or_default()], text].concat()
}

fn gob_request(command: u8, name: &[u8]) -> Vec<u8> {
    gob_message(&[b"\xff\x82\x02\x01\x01", &[command, 1], &gob_text(name), b"\x00"])
}

fn gob_reply(command: u8, name: &[u8], result: u8, reason: &[u8]) -> Vec<u8> {
    let reason = if reason.is_empty() { Vec::new() } else { [&[1], &gob_text(reason)[..]].concat() };
    gob_message(&[b"\xff\x82\x01\x02\x01\x01", &[command, 1], &gob_text(name), &[0, 1, result], &reason, b"\x00"])
}

/// Exchanges the definitions, which are sent once in each direction of a TCP connection, along with
/// a peek at a free lock.
fn gob_definitions(stream: &mut TcpStream) -> Result<()> {
    let name = b"greeting";
    stream.write_all(&[REQUEST_DEFINITION, &gob_request(PEEK, name)].concat())?;
    let value = gob_reply(PEEK, name, SUCCESS, b"");
    let expected = [REPLY_DEFINITIONS, REQUEST_IN_REPLY_DEFINITION, &value].concat();
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).context("no reply to the definitions")?;
    ensure!(received == expected, "unexpected definitions {received:02x?}");
    Ok(())
}

/// The opening handshake, with the key and the response of the example in RFC 6455, section 1.3.
fn upgrade(stream: &mut TcpStream) -> Result<()> {
    let host = stream.peer_addr()?;
    write!(
        stream,
        "GET /distrilock HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer).context("no answer to the WebSocket handshake")?;
        head.extend_from_slice(&buffer[..count]);
        ensure!(count > 0 && head.len() < 65_536, "handshake refused: {:?}", String::from_utf8_lossy(&head));
    }
    let head = String::from_utf8_lossy(&head);
    let accepted = head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    ensure!(accepted, "handshake refused: {head:?}");
    Ok(())
}
