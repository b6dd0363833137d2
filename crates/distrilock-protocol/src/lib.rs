//! The protocol of distrilock: bytes to messages and back, for both ends, without I/O.
//!
//! [`v1`] is version 1, which new clients speak; [`v0`] and [`gob`] are version 0.1 of the
//! original. [`name`] has lock names, [`want`] how a lock is held, [`limits`] how large messages
//! may be. With the feature `websocket`, `Codec` is one connection as the daemon sees it: its
//! framing (lines, a gob stream, WebSocket frames), and the version that its peer speaks.
//!
//! ```
//! use distrilock_protocol::v1::{Done, Op, Reply, RequestObject, decode};
//!
//! let line = RequestObject::from(&Op::Ping).line(7);
//! assert_eq!(line, b"{\"id\":7,\"op\":\"ping\"}\n");
//! let request = decode(&line).expect("it is a request");
//! assert_eq!(request.op, Op::Ping);
//! let reply = serde_json::to_string(&Reply::yes(request.id.as_ref(), Done {}))?;
//! assert_eq!(reply, r#"{"id":7,"ok":true}"#);
//! # Ok::<(), serde_json::Error>(())
//! ```

#[cfg(feature = "websocket")]
mod codec;
pub mod gob;
#[cfg(feature = "websocket")]
mod hand_over;
pub mod ids;
pub mod limits;
pub mod name;
pub mod v0;
pub mod v1;
mod violation;
pub mod want;
#[cfg(feature = "websocket")]
pub mod websocket;

#[cfg(feature = "websocket")]
pub use codec::{Codec, Dialect, Form, Incoming};
#[cfg(feature = "websocket")]
pub use hand_over::HandedCodec;
pub use violation::Violation;
