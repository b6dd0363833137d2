//! [`Files`]: a lock directory, and what its lock files are called.

use std::ffi::{CString, OsString};
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;

use super::fence_mark::Mark;
use super::file_id::FileId;
use super::network::Network;
use distrilock_protocol::name::LockName;

/// A lock file is called after its lock, with this suffix.
const SUFFIX: &str = ".lck";

/// The lock files of a directory.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    /// What is known of the server, if the directory is on a network file system.
    network: Option<Network>,
    pub(super) mark: Mark,
}

impl Files {
    /// The lock files in a directory, an absolute path. Paths are resolved at every call. So if the
    /// directory is replaced, or a file system is mounted over it, the checks notice that instead
    /// of locking files that nobody else sees.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        let mark = Mark::new(&directory, SUFFIX, None);
        Self { directory, network: None, mark }
    }

    /// The lock files in a directory of a network file system.
    #[must_use]
    pub fn on_network(directory: PathBuf, network: Network) -> Self {
        let mark = Mark::new(&directory, SUFFIX, Some(network.open_flags()));
        Self { directory, network: Some(network), mark }
    }

    /// What is known of the server, if the directory is on a network file system. There, every call
    /// may take as long as the server does not answer.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The lock directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which directory it is, whatever its path: locks in another one would exclude nobody.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn directory_id(&self) -> std::io::Result<FileId> {
        Ok(FileId::from(&stat(self.directory())?))
    }

    /// The path of a name's lock file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        // With room for a slash and a NUL byte: a path is allocated once.
        let mut path = OsString::with_capacity(self.directory.as_os_str().len() + name.len() + SUFFIX.len() + 2);
        path.push(&self.directory);
        let mut path = PathBuf::from(path);
        path.push(name);
        path.as_mut_os_string().push(SUFFIX);
        path
    }

    pub(super) fn c_path(&self, name: &LockName) -> CString {
        CString::new(self.path(name.as_str()).into_os_string().into_encoded_bytes())
            .expect("neither a lock name nor a directory's path has a NUL byte")
    }

    /// The lock whose file has this name, if it is the name of a lock file.
    #[must_use]
    pub fn name_of(file: &[u8]) -> Option<LockName> {
        LockName::parse(file.strip_suffix(SUFFIX.as_bytes())?).ok()
    }
}
