//! [`OpenGate`]: a file in `.distrilock/` that keeps a name's lock file from being opened while it
//! is deleted (see [`distrilock_engine::steps::nfs4`]). It has a byte for each name, and is never
//! deleted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use rustix::fs::OFlags;

use super::{daemon_folder, ofd_lock};
use distrilock_engine::Mode;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult;
use distrilock_protocol::name::LockName;

/// The bytes of names begin here. Before them, each daemon has an anchor, as it has on lock files.
const FIRST: u64 = 1 << 32;

/// The open gate and the bytes of it that this process locks. One open file cannot lock a byte
/// twice, so two names that share a byte wait for each other.
#[derive(Debug)]
pub(super) struct OpenGate {
    /// The mode of the file, if this process creates it.
    permissions: u32,
    /// What the file is opened with.
    flags: OFlag,
    /// The file, and the lease's [epoch](super::lease::Lease::epoch) in which it was opened: it is
    /// not used in later ones.
    current: Option<(Arc<File>, u64)>,
    /// The locked bytes. The file through which each was locked stays open until it is unlocked.
    locked: HashMap<i64, Arc<File>>,
}

impl OpenGate {
    pub(super) fn new(permissions: u32, flags: OFlag) -> Self {
        Self { permissions, flags, current: None, locked: HashMap::new() }
    }

    /// Returns the file and the byte to lock or unlock; `None` if another name of this process uses
    /// the byte.
    pub(super) fn enter(
        &mut self,
        directory: &Path,
        epoch: u64,
        name: &LockName,
        mode: Option<Mode>,
    ) -> io::Result<Option<(Arc<File>, i64)>> {
        let place = place_of(name);
        if mode.is_none() {
            return Ok(self.locked.remove(&place).map(|file| (file, place)));
        }
        if self.locked.contains_key(&place) {
            return Ok(None);
        }
        let file = match &self.current {
            Some((file, opened)) if *opened == epoch => Arc::clone(file),
            _ => Arc::new(open(directory, self.permissions, self.flags)?),
        };
        self.current = Some((Arc::clone(&file), epoch));
        self.locked.insert(place, Arc::clone(&file));
        Ok(Some((file, place)))
    }

    /// The byte was not locked. `forgotten`: the server no longer knows the open file, so the next
    /// call has to open it again.
    pub(super) fn refused(&mut self, place: i64, forgotten: bool) {
        self.locked.remove(&place);
        if forgotten {
            self.current = None;
        }
    }
}

fn open(directory: &Path, permissions: u32, flags: OFlag) -> io::Result<File> {
    daemon_folder::create(directory)?;
    let direct = daemon_folder::with(flags);
    let open = |flags| daemon_folder::open_file(directory, daemon_folder::GATE, direct | flags, permissions);
    let file = match open(OFlags::CREATE | OFlags::EXCL) {
        Ok(file) => {
            // A collector runs with its user's umask, which must not matter here.
            file.set_permissions(fs::Permissions::from_mode(permissions))?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open(OFlags::empty())?,
        Err(error) => return Err(error),
    };
    if !ofd_lock::set(&file, Some(Mode::Shared), (0, 1))? {
        return Err(Errno::EAGAIN.into());
    }
    Ok(file)
}

/// The byte of a name: 61 bits of its FNV-1a hash. Daemons of every version have to agree on it.
/// Names that were made to share a byte wait for each other, and nothing worse happens.
fn place_of(name: &LockName) -> i64 {
    let hash = name
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    i64::try_from(FIRST + (hash >> 3)).expect("61 bits and a little fit")
}

pub(super) fn gate_failed(directory: &Path, errno: Errno) -> CallResult {
    let path = daemon_folder::path(directory).join(daemon_folder::GATE);
    CallResult::Failed(Fault::system(Operation::Lock, path.to_string_lossy(), errno as i32))
}
