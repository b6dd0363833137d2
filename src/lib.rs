//! distrilock: named, distributed locks for every host that can mount a directory.
//!
//! A connection is a session, a session holds named locks, and each lock is an fcntl lock on one file in a directory. This crate
//! is the library for clients, [`client`], and the daemon, `distrilockd`, cut so that what decides knows nothing of what acts:
//!
//! ```text
//! bytes -> front -> wire -> session -> engine shard -> effects
//!                             |            ^             |
//! bytes <- front <- wire <----+            +--- files <--+
//! ```
//!
//! - [`engine`] decides who holds a name. No I/O, no clock; its model visits every interleaving.
//! - [`files`] makes the file calls that the engine asks for: the only module that knows fcntl(2) and paths.
//! - [`wire`] turns bytes into messages and back, for every dialect, without a socket.
//! - [`session`] stands between one client's requests and the engine.
//! - [`front`] has the sockets: listeners, the upgrade to WebSocket, one task a connection.
//! - [`daemon`] starts, serves and stops; [`lock_table`] is what all sessions share.
//! - [`systemd`] takes passed sockets, notifies, logs to the journal, and keeps what one process leaves to the next (`hand_over` in
//!   `engine`, `wire`, `session`, `files`, `front` and `daemon`).
//! - [`doctor`] examines a lock directory; [`timing`] has the times on which exclusion over NFS rests.
//! - [`client`] is the other end of the protocol, and knows the daemon by it alone.
//! - [`command`] is the other program, `distrilock`: it runs commands under a lock, and shows who holds and who waits.
//! - [`clock`], [`limits`], [`name`], [`fault`], [`readiness`] and [`settings`] are what the others speak of.
//!
//! Deliberately absent: leases, since a lock lives as long as its connection; a quorum, since the file system decides; any state
//! of its own beside the lock files and what `.distrilock/` has, of which nothing has to be kept but the mark of fences.

pub mod clock;
pub mod command;
pub mod daemon;
pub mod directory;
pub mod doctor;
pub mod files;
pub mod front;
pub mod host;
pub mod limits;
pub mod lock_table;
pub mod readiness;
pub mod session;
pub mod settings;
pub mod sync;
pub mod systemd;
pub mod timing;
