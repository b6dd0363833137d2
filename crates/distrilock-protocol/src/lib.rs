//! The protocol of distrilock: bytes to messages and back, for both ends, without I/O.
//!
//! A [`Codec`] is one connection's state of that: its framing (lines, a gob stream, WebSocket frames), and which version of the
//! protocol its peer speaks. Version 1 is in [`v1`], the original's version 0.1 in [`v0`] and [`gob`]. [`name`] has lock names,
//! [`want`] how a lock is held, [`limits`] what a message may have.

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
