//! What the daemon takes from systemd and tells it: sockets, readiness, watchdog, journal.
//!
//! Everything here also works, or stands aside, where systemd is not. Nothing here knows about
//! locks, sessions or messages.

pub mod ids;
pub mod journal;
pub mod notify;
pub mod sockets;
pub mod store;
