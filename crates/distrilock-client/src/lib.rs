//! The client library: connect to a daemon, acquire locks, and know for how long they are held.
//!
//! A [`Client`] is one connection, which is one session of the daemon. [`Client::lock`] acquires a lock and gives a [`Held`];
//! dropping it releases the lock, and [`Held::lost`] tells if it is lost before. [`blocking`] is the same without `async`.
//!
//! ```
//! use distrilock_client::Client;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let daemon = distrilock_testing::Daemon::start();
//! # let servers = daemon.servers();
//! // Or those that the environment names: `Server::defaults()?`.
//! let client = Client::connect(&servers).await?;
//! let held = client.lock("backup").wait().acquire().await?;
//! // Work that nobody else is to do now.
//! held.release().await?;
//! # Ok(()) }
//! ```
//!
//! Three things are certain:
//!
//! - A lock is never called held after it may have been given to somebody else. The client sends heartbeats, and gives its locks
//!   up by its own clock when they are not answered, sooner than the daemon gives the client up. The program then has
//!   [`stop_within`](Builder::stop_within) to stop its work.
//! - Dropping the future of an acquire never leaves a lock behind.
//! - Nothing is connected anew in silence: a new connection is a new session, and holds nothing.

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
mod readiness;
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
