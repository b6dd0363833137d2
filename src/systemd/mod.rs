//! The daemon's side of systemd: passed sockets, readiness, watchdog, journal, and descriptors that
//! outlive a process.
//!
//! Without systemd everything here still works or does nothing. Nothing here knows about locks,
//! sessions or messages.

pub mod ids;
pub mod journal;
pub mod notify;
pub mod sockets;
pub mod store;
