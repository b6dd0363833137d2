//! Lock files: the only module that knows paths, fcntl(2) and the kind of file system under the
//! lock directory.
//!
//! It carries out the engine's [`FileOp`]s. [`distrilock_engine::steps`] decides, without a system
//! call, which steps an operation takes, so that models run the very same steps. Two executors make
//! the calls: `local` on a local file system, [`nfs4`] on one that several hosts mount. Both work
//! on an open lock file (`lock_file`, `slots`, `fence`, which needs the directory's `fence_mark`).
//!
//! [`mount`] recognises the file system, and [`lease`] keeps track of when its server was last
//! heard. `.distrilock/` (`daemon_folder`) is where the daemons of a directory find each other: on
//! a network file system by their [`presence`], on a local one by their [`peer_sockets`].

pub mod board;
mod collect;
mod daemon_folder;
mod fence;
mod fence_mark;
mod fence_text;
mod file_id;
mod hand_over;
pub mod lease;
mod local;
mod lock_directory;
mod lock_file;
pub mod mount;
pub mod network;
pub mod nfs4;
mod ofd_lock;
mod open_gate;
pub mod peer_sockets;
pub mod presence;
mod ranges;
mod slots;
mod stamp;
pub mod trial_lock;

pub use collect::Collected;
pub use file_id::FileId;
pub use hand_over::HandedFile;
pub use lock_directory::Files;
pub use lock_file::{OpenFile, Performed};

use distrilock_engine::{FileOp, Outcome};
use distrilock_protocol::name::LockName;
use local::LocalExecutor;
use nfs4::Nfs4Executor;

impl Files {
    /// Carries out one operation: microseconds on a local file system, unless it takes a fence.
    #[must_use]
    pub fn perform(&self, name: &LockName, op: FileOp, file: Option<OpenFile>) -> (Option<OpenFile>, Outcome) {
        let Performed { file, outcome, .. } = self.perform_and_look(name, op, file);
        (file, outcome)
    }

    /// The same, and reports a file that was deleted although it was locked.
    #[must_use]
    pub fn perform_and_look(&self, name: &LockName, op: FileOp, file: Option<OpenFile>) -> Performed {
        match self.network() {
            Some(network) => Nfs4Executor::new(self, network, name, file).perform(op),
            None => LocalExecutor::new(self, name, file).perform(op),
        }
    }
}
