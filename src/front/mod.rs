//! The sockets: listeners, the upgrade to WebSocket, and one task for each connection, which moves
//! bytes between its socket and its [`Session`](crate::session::Session).

mod accept;
mod admission;
mod connection;
mod hand_over;
mod stream;
mod threads;
mod upgrade;
mod write_batch;

pub use accept::{Transport, accept, resume};
pub use hand_over::{Frozen, HandedConnection};
pub use stream::{Listening, Stream};
pub use threads::SessionThreads;
