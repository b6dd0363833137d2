//! Lock files on their way to the next process of the daemon. An open file's locks are those of its open file description (OFD,
//! fcntl_locking(2)), and go where a descriptor of it goes: nobody sees the lock free meanwhile.

use std::os::fd::OwnedFd;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::os::{Files, OpenFile, identity};
use distrilock_engine::Mode;
use distrilock_protocol::name::LockName;

/// What has to be told of an open file besides its descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedFile {
    identity: (u64, u64),
    slots: Vec<u16>,
    epoch: u64,
    lost: bool,
}

impl OpenFile {
    /// What the next process needs of it.
    #[must_use]
    pub fn hand_over(self) -> (HandedFile, OwnedFd) {
        let Self { descriptor, path: _, identity, locked: _, slots, epoch, lost } = self;
        (HandedFile { identity, slots, epoch, lost }, descriptor)
    }
}

impl Files {
    /// The same open file in the next process; `None` if the descriptor is another file's.
    #[must_use]
    pub fn take_over(
        &self,
        name: &LockName,
        handed: HandedFile,
        locked: Option<Mode>,
        descriptor: OwnedFd,
    ) -> Option<OpenFile> {
        let HandedFile { identity: told, slots, epoch, lost } = handed;
        let is_it = fstat(&descriptor).is_ok_and(|stat| identity(&stat) == told);
        let path = self.c_path(name);
        is_it.then_some(OpenFile { descriptor, path, identity: told, locked, slots, epoch, lost })
    }

    /// What the lock directory is, whatever its path: locks on another one would exclude nobody.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn place(&self) -> std::io::Result<(u64, u64)> {
        Ok(identity(&nix::sys::stat::stat(self.directory())?))
    }
}
