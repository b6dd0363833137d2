//! What a peer can do against the protocol, so that its session ends.

use crate::gob;
use crate::limits::FRAME_BYTES_MAX;

/// The peer broke the protocol. It is told so once, where that is possible, and the session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line or a frame beyond the limit.
    #[error("a message of {bytes} bytes or more; at most {FRAME_BYTES_MAX} are taken")]
    TooLong {
        /// Its length, as far as it was seen or announced.
        bytes: u64,
    },
    /// The framing or the definitions of the gob stream are corrupt.
    #[error("malformed gob stream: {0}")]
    Gob(#[from] gob::GobError),
    /// RFC 6455 forbids it.
    #[error("{0}")]
    WebSocket(String),
    /// The first line is not a JSON object. The peer is not a client of the daemon, and might be a
    /// browser that a page of another site has sent.
    #[error("a line that is no JSON object begins the connection; this port speaks JSON lines and gob, no HTTP")]
    NotJson,
    /// The first line begins with a byte order mark.
    #[error("a byte order mark begins the connection; send JSON lines in UTF-8 without one")]
    ByteOrderMark,
    /// The client does not read what it is sent.
    #[error("{bytes} bytes wait for the client to read them; at most {bytes_max} are kept")]
    SlowReader {
        /// How many bytes wait.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}
