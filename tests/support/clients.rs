//! A client for each dialect. They block, wait at most [`PATIENCE`] for a reply, and panic if it
//! does not come.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{Message, WebSocket};

use super::PATIENCE;

/// Connects to `HOST:PORT` or `unix:PATH`. A Unix stream also has the type of a TCP one: everything
/// that the tests do with it (read, write, time-outs, shutdown) uses the same system calls.
#[track_caller]
pub(crate) fn connect(address: &str) -> TcpStream {
    try_connect(address).unwrap_or_else(|error| panic!("connect {address}: {error}"))
}

fn try_connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = match address.strip_prefix("unix:") {
        Some(path) => TcpStream::from(OwnedFd::from(UnixStream::connect(path)?)),
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Ends a connection with RST: with a linger time of zero, close(2) resets it (socket(7),
/// SO_LINGER).
pub(crate) fn reset(stream: TcpStream) {
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).expect("SO_LINGER");
    drop(stream);
}

/// A client that speaks text, one JSON object per line. It can also send any other bytes.
pub(crate) struct V1 {
    stream: TcpStream,
    received: Vec<u8>,
    /// Objects that arrived while `request` was waiting for another one.
    aside: VecDeque<Value>,
    last_id: u64,
}

impl V1 {
    #[track_caller]
    pub(crate) fn connect(address: &str) -> Self {
        Self::over(connect(address))
    }

    /// Like `connect`, for when it is no surprise that nobody listens.
    pub(crate) fn try_connect(address: &str) -> std::io::Result<Self> {
        Ok(Self::over(try_connect(address)?))
    }

    fn over(stream: TcpStream) -> Self {
        Self { stream, received: Vec::new(), aside: VecDeque::new(), last_id: 1000 }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    #[track_caller]
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    #[track_caller]
    pub(crate) fn send_line(&mut self, line: &str) {
        self.send_bytes(format!("{line}\n").as_bytes());
    }

    #[track_caller]
    pub(crate) fn send(&mut self, request: &Value) {
        self.send_line(&request.to_string());
    }

    /// The next object.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Value {
        match self.try_receive() {
            Ok(object) => object,
            Err(error) => panic!("nothing received: {error}"),
        }
    }

    /// The next object, or the reason why there is none; the end of the connection is
    /// `UnexpectedEof` or `ConnectionReset`.
    pub(crate) fn try_receive(&mut self) -> std::io::Result<Value> {
        if let Some(object) = self.aside.pop_front() {
            return Ok(object);
        }
        self.read_object()
    }

    fn read_object(&mut self) -> std::io::Result<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let object = serde_json::from_slice(&line);
                return Ok(object.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line))));
            }
            self.read_some()?;
        }
    }

    fn read_some(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            // The kernel does not restart a read that has a time-out (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads exactly this many bytes of the stream.
    #[track_caller]
    pub(crate) fn receive_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count {
            if let Err(error) = self.read_some() {
                panic!("{error} after {:02x?} of {count} bytes", self.received);
            }
        }
        self.received.drain(..count).collect()
    }

    /// Sends a request, with an id if it has none, and waits for its reply. Objects that arrive
    /// before it are left to `receive`.
    #[track_caller]
    pub(crate) fn request(&mut self, request: Value) -> Value {
        self.try_request(request).unwrap_or_else(|error| panic!("no reply: {error}"))
    }

    pub(crate) fn try_request(&mut self, mut request: Value) -> std::io::Result<Value> {
        if request.get("id").is_none() {
            self.last_id += 1;
            request["id"] = self.last_id.into();
        }
        self.stream.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let object = self.read_object()?;
            if object.get("id") == request.get("id") {
                return Ok(object);
            }
            self.aside.push_back(object);
        }
    }

    /// Tries to acquire; returns whether the lock was granted.
    #[track_caller]
    pub(crate) fn gets(&mut self, lock: &str) -> bool {
        let reply = self.request(json!({"op": "acquire", "lock": lock}));
        assert!(reply["ok"] == true || reply["error"] == "busy", "{reply}");
        reply["ok"] == true
    }

    #[track_caller]
    pub(crate) fn acquire(&mut self, lock: &str) {
        let reply = self.request(json!({"op": "acquire", "lock": lock}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    #[track_caller]
    pub(crate) fn release(&mut self, lock: &str) {
        let reply = self.request(json!({"op": "release", "lock": lock}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    #[track_caller]
    pub(crate) fn ping(&mut self) {
        let reply = self.request(json!({"op": "ping"}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    /// Shuts down the direction to the daemon (FIN), and keeps the other one open.
    pub(crate) fn finish(&self) {
        // The daemon may have closed the connection already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Waits until the daemon has closed the connection, and returns the bytes that it sent before.
    #[track_caller]
    pub(crate) fn closed(&mut self) -> Vec<u8> {
        loop {
            match self.read_some() {
                Ok(()) => {}
                Err(error) if ended(error.kind()) => return std::mem::take(&mut self.received),
                Err(error) => panic!("the daemon does not close: {error}"),
            }
        }
    }
}

fn ended(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// The definition of the version 0.1 request type, which clients of the original send first, as
/// type 65.
pub(crate) const GOB_REQUEST_TYPE: &[u8] = b"\x54\xff\x81\x03\x01\x01\x0bLockRequest\x01\xff\x82\x00\x01\x04\
    \x01\x0cVersionMajor\x01\x06\x00\x01\x0cVersionMinor\x01\x06\x00\x01\x07Command\x01\x06\x00\
    \x01\x08LockName\x01\x0c\x00\x00\x00";

/// The number of bytes of the two definitions at the beginning of the daemon's stream.
pub(crate) const GOB_REPLY_TYPES: usize = 79 + 85;

/// A version 0.1 request for a name of fewer than 120 bytes.
pub(crate) fn gob_request(command: u8, lock: &str) -> Vec<u8> {
    let length = |count: usize| u8::try_from(count).expect("a short name");
    assert!(lock.len() < 120, "longer names need longer numbers");
    let mut bytes = vec![length(lock.len()) + 9, 0xff, 0x82, 2, 1, 1, command, 1, length(lock.len())];
    bytes.extend_from_slice(lock.as_bytes());
    bytes.push(0);
    bytes
}

/// A client of version 0.1 over TCP. It sends bytes as they are, and understands the length and the
/// result of a reply.
pub(crate) struct Gob {
    client: V1,
    greeted: bool,
}

impl Gob {
    #[track_caller]
    pub(crate) fn connect(address: &str) -> Self {
        Self { client: V1::connect(address), greeted: false }
    }

    /// The raw bytes of the connection.
    pub(crate) fn bytes(&mut self) -> &mut V1 {
        &mut self.client
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.client.into_stream()
    }

    /// Sends a request and returns the value message of its reply, without its length.
    #[track_caller]
    pub(crate) fn request(&mut self, command: u8, lock: &str) -> Vec<u8> {
        let first = !std::mem::replace(&mut self.greeted, true);
        let types = if first { GOB_REQUEST_TYPE } else { &[] };
        self.client.send_bytes(&[types, &gob_request(command, lock)].concat());
        if first {
            self.client.receive_bytes(GOB_REPLY_TYPES);
        }
        let length = self.client.receive_bytes(1)[0];
        assert!(length < 0x80, "a short reply");
        self.client.receive_bytes(length.into())
    }

    /// Tries to acquire; returns whether the reply is that of a grant.
    #[track_caller]
    pub(crate) fn gets(&mut self, lock: &str) -> bool {
        let reply = self.request(2, lock);
        reply.ends_with(&[0, 1, 2, 0])
    }
}

/// A WebSocket frame as bytes, with an all-zero masking key if `masked` (RFC 6455, section 5.2).
/// `head` is the first byte: FIN, the reserved bits and the opcode.
pub(crate) fn frame(head: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut bytes = vec![head];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => bytes.push(mask | u8::try_from(short).expect("it is below 126")),
        Ok(middle) => {
            bytes.push(mask | 126);
            bytes.extend(middle.to_be_bytes());
        }
        Err(_) => {
            bytes.push(mask | 127);
            bytes.extend(u64::try_from(payload.len()).expect("64 bits").to_be_bytes());
        }
    }
    if masked {
        bytes.extend([0; 4]);
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends bytes to the WebSocket port and returns the response: until the daemon closes the
/// connection or, after a complete head, for the length that the head announces.
#[track_caller]
pub(crate) fn http(address: &str, request: &str) -> String {
    let mut client = V1::connect(address);
    // The daemon may have refused the head early and closed the connection.
    let _ = client.stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    while let Ok(()) = client.read_some() {
        text = client.received.clone();
        if text.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A client over WebSocket.
pub(crate) struct Ws {
    socket: WebSocket<TcpStream>,
    last_id: u64,
}

impl Ws {
    #[track_caller]
    pub(crate) fn connect(address: &str) -> Self {
        Self::with_headers(address, &[]).unwrap_or_else(|status| panic!("status {status}"))
    }

    /// Connects with additional headers, or returns the status of the refusal.
    #[track_caller]
    pub(crate) fn with_headers(address: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let host = if address.starts_with("unix:") { "localhost" } else { address };
        let mut request = format!("ws://{host}/distrilock").into_client_request().expect("a request");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        match tungstenite::client(request, connect(address)) {
            Ok((socket, _)) => Ok(Self { socket, last_id: 1000 }),
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => Err(response.status().as_u16()),
            Err(error) => panic!("the handshake failed: {error}"),
        }
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.socket.get_ref().try_clone().expect("a descriptor")
    }

    /// The raw bytes of the connection.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        self.socket.get_mut()
    }

    #[track_caller]
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).expect("the daemon reads");
    }

    #[track_caller]
    pub(crate) fn send(&mut self, message: Message) {
        self.socket.send(message).expect("the daemon reads");
    }

    #[track_caller]
    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(Message::text(text));
    }

    /// The next frame or message other than a pong.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Message {
        loop {
            match self.socket.read() {
                Ok(Message::Pong(_)) => {}
                Ok(message) => return message,
                Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing received: {error}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn receive_text(&mut self) -> String {
        match self.receive() {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("not a text message: {other}"),
        }
    }

    #[track_caller]
    pub(crate) fn receive_object(&mut self) -> Value {
        let text = self.receive_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Sends a request, with an id if it has none, and waits for its reply, ignoring everything
    /// else.
    #[track_caller]
    pub(crate) fn request(&mut self, mut request: Value) -> Value {
        if request.get("id").is_none() {
            self.last_id += 1;
            request["id"] = self.last_id.into();
        }
        self.send_text(&request.to_string());
        loop {
            let object = self.receive_object();
            if object.get("id") == request.get("id") {
                return object;
            }
        }
    }

    #[track_caller]
    pub(crate) fn acquire(&mut self, lock: &str) {
        let reply = self.request(json!({"op": "acquire", "lock": lock}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    #[track_caller]
    pub(crate) fn ping(&mut self) {
        let reply = self.request(json!({"op": "ping"}));
        assert_eq!(reply["ok"], true, "{reply}");
    }

    /// Waits for the daemon's close frame, ignoring everything else, and returns its code.
    #[track_caller]
    pub(crate) fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(close) = self.receive() {
                return close.expect("a close frame with a code").code.into();
            }
        }
    }
}
