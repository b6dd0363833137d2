//! Lock files: the only module that knows paths, fcntl(2) and what kind of file system is under the lock directory.
//!
//! It carries out the engine's [`FileOp`]s. How each is done on a local file system, step by step, is decided in [`local`]
//! without a system call, so that the engine's model runs the very same steps; `os` makes the calls.

mod fence;
pub mod local;
mod os;
mod ranges;
mod slots;

pub use fence::following;
pub use os::{Files, OpenFile};

use crate::engine::{FileOp, Outcome};
