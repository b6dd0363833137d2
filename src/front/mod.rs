//! The side that faces the network: listeners, the upgrade to WebSocket, and one task a connection that moves bytes between its
//! socket and its [`Session`](crate::session::Session).

mod accept;
mod connection;
mod hand_over;
mod stream;
mod upgrade;
pub mod write_batch;

pub use accept::{Front, Worker, accept, go_on};
pub use hand_over::{Frozen, HandedConnection};
pub use stream::{Listening, Stream};
