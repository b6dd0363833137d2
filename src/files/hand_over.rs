//! Lock files on their way to the next process of the daemon. Their locks go along, since they
//! belong to the open file (`ofd_lock`): nobody sees a lock free in between.

use std::os::fd::OwnedFd;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::file_id::FileId;
use super::lock_directory::Files;
use super::lock_file::OpenFile;
use distrilock_engine::Mode;
use distrilock_protocol::name::LockName;

/// What the next process has to know of an open file, apart from its descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedFile {
    #[serde(rename = "identity")]
    id: FileId,
    slots: Vec<u16>,
    epoch: u64,
    lost: bool,
}

impl OpenFile {
    /// Takes it apart for the next process.
    #[must_use]
    pub fn hand_over(self) -> (HandedFile, OwnedFd) {
        let Self { descriptor, path: _, id, locked: _, slots, epoch, lost, locked_ms: _ } = self;
        (HandedFile { id, slots, epoch, lost }, descriptor)
    }
}

impl Files {
    /// Puts an open file of the previous process together again. Returns `None` if the descriptor
    /// is another file's.
    #[must_use]
    pub fn take_over(
        &self,
        name: &LockName,
        handed: HandedFile,
        locked: Option<Mode>,
        descriptor: OwnedFd,
    ) -> Option<OpenFile> {
        let HandedFile { id, slots, epoch, lost } = handed;
        let is_it = fstat(&descriptor).is_ok_and(|stat| FileId::from(&stat) == id);
        let path = self.c_path(name);
        is_it.then_some(OpenFile { descriptor, path, id, locked, slots, epoch, lost, locked_ms: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes of other versions read what goes over, and write it.
    #[test]
    fn the_form_stays() {
        let text = r#"{"identity":[1,2],"slots":[3],"epoch":4,"lost":false}"#;
        let handed: HandedFile = serde_json::from_str(text).unwrap();
        assert_eq!(handed.id, FileId::from((1, 2)));
        assert_eq!(serde_json::to_string(&handed).unwrap(), text);
    }
}
