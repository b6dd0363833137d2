//! The side that faces the network: listeners, the upgrade to WebSocket, and one task a connection that moves bytes between its
//! socket and its [`Session`](crate::session::Session).

mod accept;
pub mod burst;
mod connection;
mod stream;
mod upgrade;

pub use accept::{Front, Worker, accept};
pub use stream::{Listening, Stream};
