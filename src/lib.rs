//! distrilock: named, distributed locks for every host that can mount a directory.
//!
//! A connection is a session, a session holds named locks, and each lock is an fcntl lock on one
//! file in a directory. This crate has the daemon, `distrilockd`, and the command, `distrilock`. It
//! stands on three crates of its own: `distrilock-protocol`, the messages of both ends,
//! `distrilock-engine`, which decides who holds a name, and `distrilock-client`, the client
//! library. The first two do no I/O.
//!
//! ```text
//! bytes -> front -> protocol -> session -> lock_table -> engine -> effects
//!                                  ^                                  |
//!                                  |                      files, timers, other daemons
//! bytes <- front <- protocol <- session <- mailbox <- notices <-------+
//! ```
//!
//! The modules of the daemon, from the top. A module uses only modules below it:
//!
//! - [`daemon`] is the daemon's life: start, serve, stop, and hand-over to its next process.
//! - [`front`] has the sockets: listeners, the upgrade to WebSocket, and one task for each
//!   connection.
//! - [`session`] translates between one client's requests and the engine.
//! - [`lock_table`] is what all sessions share: the engine's shards, the lock files, the mailboxes,
//!   the hints between daemons.
//! - [`directory`] finds the lock directory, and judges the file system under it.
//! - [`files`] makes the file calls that the engine asks for. No other module of the daemon locks,
//!   opens or deletes lock files.
//! - [`systemd`] takes passed sockets, notifies systemd, logs to the journal, and keeps what one
//!   process leaves to the next.
//! - [`settings`] is the command line; [`timing`] has the times on which exclusion over NFS rests.
//! - [`limits`], [`clock`], [`host`], [`shortage`], [`slice`](mod@slice), [`checksum`],
//!   [`readiness`] and [`sync`] are small and used by several of the others.
//!
//! Next to the daemon:
//!
//! - [`command`] is the program `distrilock`, which runs commands under a lock and shows who holds
//!   what and who waits. It knows daemons only through the client library.
//! - [`doctor`] examines a lock directory.
//!
//! Some things are deliberately absent. There are no lock leases, since a lock lasts as long as its
//! connection. There is no quorum, since the file system decides. And there is no state other than
//! the lock files and the contents of `.distrilock/`, of which only the fence marks have to be
//! kept.
//!
//! docs/architecture.md follows a request, a restart and a lost lock through these modules.

pub mod checksum;
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
pub mod shortage;
pub mod slice;
pub mod sync;
pub mod systemd;
pub mod timing;
