//! The state that one process of the daemon leaves to the next, in JSON.

use serde::{Deserialize, Serialize};

use super::handed_lock::HandedLock;
use crate::files::lease::HandedLease;
use crate::files::{FileId, HandedFile};
use crate::front::HandedConnection;

/// The version of [`State`]; no other is understood. It rises when a member is added that must not
/// be ignored.
pub(super) const VERSION: u32 = 1;

/// What goes to the next process, apart from descriptors and bytes. The bytes of the connections
/// follow it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) version: u32,
    /// The lock directory, by device and inode.
    pub(super) directory: FileId,
    pub(super) next_session: u64,
    /// When the file server was last heard, and in which epoch.
    pub(super) contact: Option<HandedLease>,
    /// In the order of their sockets, which come first.
    pub(super) connections: Vec<HandedConnection>,
    /// In the order of their files, as far as they have one.
    pub(super) locks: Vec<HandedLock<HandedFile>>,
}

/// The part of [`State`] that every version has.
#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) version: u32,
}

/// Why what was left cannot be used: its sessions have ended, and its locks went with their
/// descriptors.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum UnusableError {
    #[error("it is of version {0}, and this daemon understands version {VERSION}")]
    Version(u32),
    #[error("it cannot be read: {0}")]
    State(#[from] serde_json::Error),
    #[error("its descriptors or bytes do not match its description of them")]
    Count,
    #[error("its locks are in another directory")]
    Directory,
}
