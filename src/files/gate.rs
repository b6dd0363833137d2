//! [`Gate`]: the file in `.distrilock/` that keeps a name's file from being opened while it is deleted (see
//! [`nfs4`](super::nfs4)). It has a byte for each name, and is never deleted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::network::Network;
use super::node::{FOLDER, folder};
use super::os::lock;
use distrilock_engine::Mode;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult as Answer;
use distrilock_protocol::name::LockName;

const FILE: &str = "gate";

/// Bytes of names begin here; before, each daemon has an anchor, as on lock files.
const FIRST: u64 = 1 << 32;

/// The open gate, and the bytes of it that this process locks: one open file cannot lock a byte twice, so that two names which
/// have the same one wait for each other.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// With the epoch in which it was opened, as [`Contact`](super::contact::Contact) counts: later ones do not rely on it.
    current: Option<(Arc<File>, u64)>,
    /// Locked bytes, each with the file through which it is locked: it stays open for that long.
    locked: HashMap<i64, Arc<File>>,
}

impl Gate {
    /// The file and the byte to lock, or to unlock. `None`: another name of this process uses the byte.
    pub(super) fn enter(
        &mut self,
        directory: &Path,
        network: &Network,
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
        let epoch = network.epoch();
        let file = match &self.current {
            Some((file, opened)) if *opened == epoch => Arc::clone(file),
            _ => Arc::new(open(directory, network)?),
        };
        self.current = Some((Arc::clone(&file), epoch));
        self.locked.insert(place, Arc::clone(&file));
        Ok(Some((file, place)))
    }

    /// The byte was not locked. If that is because the server has forgotten the file, it is opened anew for the next one.
    pub(super) fn refused(&mut self, place: i64, forgotten: bool) {
        self.locked.remove(&place);
        if forgotten {
            self.current = None;
        }
    }
}

fn open(directory: &Path, network: &Network) -> io::Result<File> {
    let path = folder(directory)?.join(FILE);
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let permissions = network.permissions();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(flags).mode(permissions);
    let file = match options.clone().create_new(true).open(&path) {
        Ok(file) => {
            // Whatever the umask: a collector runs with its user's.
            file.set_permissions(fs::Permissions::from_mode(permissions))?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(&path)?,
        Err(error) => return Err(error),
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(Some(Mode::Shared), (0, 1))))?;
    Ok(file)
}

/// The byte of a name. Daemons of every version have to agree on it: FNV-1a, 61 bits of it. (Names that are made to have the same
/// one wait for each other, and nothing worse.)
fn place_of(name: &LockName) -> i64 {
    let hash = name
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    i64::try_from(FIRST + (hash >> 3)).expect("61 bits and a little fit")
}

pub(super) fn gate_failed(directory: &Path, errno: Errno) -> Answer {
    let path = directory.join(FOLDER).join(FILE);
    Answer::Failed(Fault::system(Operation::Lock, path.to_string_lossy(), errno as i32))
}
