//! The client library: connect to a daemon, acquire locks, and know for how long they are held.
//!
//! A [`Client`] is one connection, and one session of the daemon. [`Client::lock`] acquires a lock
//! and returns a [`Held`]. Dropping it releases the lock, and [`Held::lost`] reports if the lock is
//! lost before that. [`blocking`] has the same without `async`.
//!
//! ```
//! use distrilock_client::Client;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let daemon = distrilock_testing::Daemon::start();
//! # let servers = daemon.servers();
//! // Or the servers that the environment names: `Server::defaults()?`.
//! let client = Client::connect(&servers).await?;
//! let held = client.lock("backup").wait().acquire().await?;
//! // Work that nobody else may do meanwhile.
//! held.release().await?;
//! # Ok(()) }
//! ```
//!
//! Three things are guaranteed:
//!
//! - A lock never counts as held once it may have been granted to somebody else. The client sends
//!   heartbeats. If they are not answered, it gives its locks up by its own clock, before the
//!   daemon gives the client up. The program then has [`stop_within`](Builder::stop_within) to stop
//!   its work.
//! - Dropping the future of an acquire never leaves a lock behind.
//! - The client never reconnects on its own: a new connection is a new session, and holds nothing.
//!
//! WebSocket servers (`ws://HOST:PORT`) need the feature `websocket`.

mod acquire;
mod address;
mod block_on;
pub mod blocking;
mod boottime;
mod client;
mod connect;
mod driver;
mod error;
mod grant;
mod held;
mod link;
#[doc(hidden)]
pub mod readiness;
mod session;
mod shared;
mod timing;
mod wanted;

pub use acquire::Acquire;
pub use address::{ParseServerError, Server};
pub use boottime::BootTime;
pub use client::Client;
pub use connect::{Builder, introduction_of_this_process};
pub use distrilock_protocol::name::{LockName, NameError};
pub use distrilock_protocol::v1::{ErrorWord, Introduction, Listed, ModeWord, Peeked, SessionInfo, Welcome};
pub use error::{AcquireError, AttemptError, ConnectError, DisconnectedError, LostError, RequestError, ServerError};
pub use grant::HeldLock;
pub use held::Held;
pub use session::Standing;
pub use wanted::Wanted;
