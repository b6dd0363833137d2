//! Lock files: the only module that knows paths, fcntl(2) and what kind of file system is under the lock directory.
//!
//! It carries out the engine's [`FileOp`]s. How each is done, step by step, is decided without a system call, in [`local`] for a
//! local file system and in [`nfs4`] for one that several hosts mount, so that models run the very same steps; `os` and
//! `nfs4::hand` make the calls. [`mount`] tells which kind of file system it is, [`contact`] when its server was last heard.
//! [`meeting`] has the sockets by which the daemons of a local directory find each other.

mod collect;
pub mod contact;
mod fence;
mod gate;
mod hand_over;
pub mod meeting;
pub mod mount;
pub mod network;
pub mod nfs4;
pub mod node;
mod os;
pub mod probe;
mod ranges;
mod slots;

pub use collect::Collected;
pub use hand_over::HandedFile;
pub use os::{Files, OpenFile};

use distrilock_engine::{FileOp, Outcome};
