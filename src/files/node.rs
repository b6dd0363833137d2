//! A daemon's own file in `DIR/.distrilock/`: who it is, for the daemons of other hosts, and a lock that lasts as long as the
//! daemon, through which it hears the server.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::pread;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::network::Network;
use super::os::lock;
use crate::clock::now_ms;
use distrilock_engine::Mode;

/// What daemons keep for themselves in a lock directory.
pub const FOLDER: &str = ".distrilock";

/// What a node's file is called begins with this.
const PREFIX: &str = "node-";

/// So often a file is made anew that another daemon has removed.
const ENTRIES_MAX: u8 = 20;

/// Files of other nodes that are looked at, at most.
const NODES_MAX: usize = 4096;

/// So often the nodes are looked at once more because one has changed meanwhile.
const LOOKS_MAX: u8 = 10;

/// A file that is younger belongs to a daemon that lives, locked or not.
const YOUNG_SECONDS: i64 = 60;

/// A node's file is no longer than this.
const NODE_BYTES_MAX: u64 = 4096;

/// A daemon, as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The host's name.
    pub node: String,
    /// What tells two NFS clients apart that run at the same time: the kernel's boot and the network namespace.
    pub instance: String,
    /// The kernel's boot and the device that it gave the mount. A daemon in a network namespace of its own (PrivateNetwork=) still uses
    /// the NFS client of the namespace in which the directory was mounted. Empty in the files of daemons that do not know of it.
    #[serde(default)]
    pub mount: String,
    /// The name under which this host's kernel introduces itself to NFSv4 servers (nfs(5), "nfs4_unique_id").
    pub client: String,
    /// The daemon's process.
    pub pid: u32,
    /// The user that it runs as.
    pub user: u32,
}

impl Identity {
    /// This process, on a lock directory.
    #[must_use]
    pub fn of_this_process(directory: &Path) -> Self {
        let node =
            nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id");
        let network = fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
        let device = fs::metadata(directory).map_or(0, |directory| directory.dev());
        let unique = [read("/sys/fs/nfs/net/nfs_client/identifier"), read("/sys/module/nfs/parameters/nfs4_unique_id")];
        let unique = unique.into_iter().find(|text| !text.is_empty() && text != "(null)").unwrap_or_default();
        Self {
            client: if unique.is_empty() { node.clone() } else { format!("{unique}/{node}") },
            node,
            instance: format!("{boot}/{network}"),
            mount: if boot.is_empty() { boot } else { format!("{boot}/{device}") },
            pid: std::process::id(),
            user: nix::unistd::geteuid().as_raw(),
        }
    }

    /// Whether another daemon's host has the same name for the server, so that each wipes the other's locks.
    #[must_use]
    pub fn clashes_with(&self, other: &Self) -> bool {
        let one_mount = !self.mount.is_empty() && self.mount == other.mount;
        self.client == other.client && self.instance != other.instance && !one_mount
    }
}

/// This daemon's own file, locked.
#[derive(Debug)]
pub struct Node {
    path: PathBuf,
    file: fs::File,
}

/// What a read through a node's locked file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The server knows the lock.
    Well,
    /// The server has forgotten it: every lock of this host is in doubt.
    Forgotten,
}

impl Node {
    /// Makes the file and locks it.
    ///
    /// # Errors
    /// If the folder or the file cannot be made or locked.
    pub fn enter(directory: &Path, network: &Network, identity: &Identity) -> io::Result<Self> {
        let folder = folder(directory)?;
        for _ in 0..ENTRIES_MAX {
            let node = Self::make(&folder, network, identity)?;
            let locked = fcntl(&node.file, FcntlArg::F_OFD_SETLK(&lock(Some(Mode::Exclusive), (0, 0))));
            match locked {
                Ok(_) if node.is_named()? => return Ok(node),
                // Another daemon took it for one that was left behind, before it was locked.
                Ok(_) | Err(Errno::EAGAIN | Errno::EACCES) => leave(&node.path),
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other("other daemons remove this one's file again and again"))
    }

    fn make(folder: &Path, network: &Network, identity: &Identity) -> io::Result<Self> {
        let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let path = folder.join(format!("{PREFIX}{}", unique.trim()));
        let mut text = serde_json::to_vec(identity).expect("an identity is plain text and numbers");
        text.push(b'\n');
        let mut written = fs::File::options().write(true).create_new(true).mode(network.permissions()).open(&path)?;
        written.write_all(&text)?;
        written.sync_all()?;
        drop(written);
        let file = fs::File::options().read(true).write(true).custom_flags(network.direct().bits()).open(&path)?;
        Ok(Self { path, file })
    }

    /// Whether the file is still there under its name, past the caches.
    fn is_named(&self) -> io::Result<bool> {
        let folder = self.path.parent().expect("it lies in the folder of the daemons");
        statx(CWD, folder, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads through the locked file, past the caches. It may take as long as the server does not answer.
    ///
    /// # Errors
    /// If the read fails in a way that says nothing of the lock.
    pub fn listen(&self, network: &Network) -> io::Result<Heard> {
        let sent_ms = now_ms();
        match pread(&self.file, &mut [0; 8], 0) {
            Ok(_) => {
                network.heard(sent_ms);
                Ok(Heard::Well)
            }
            Err(Errno::EIO | Errno::ESTALE | Errno::EBADF) => {
                network.broken();
                Ok(Heard::Forgotten)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes a daemon's own file: it stops, or goes on with another one. Nobody uses the name again, so that it does not matter when
/// the deletion takes effect; who comes later removes what stays behind.
pub fn leave(node: &Path) {
    let _ = fs::remove_file(node);
}

/// The folder for what daemons keep for themselves; its mode is the lock directory's, whatever the umask.
pub(super) fn folder(directory: &Path) -> io::Result<PathBuf> {
    let folder = directory.join(FOLDER);
    let mode = fs::metadata(directory)?.mode() & 0o3777;
    // The set-group-ID bit is inherited; a unit with RestrictSUIDSGID= may not ask for it.
    match fs::DirBuilder::new().mode(mode & 0o1777).create(&folder) {
        Ok(()) if fs::metadata(&folder)?.mode() & 0o3777 == mode => {}
        Ok(()) => fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(folder)
}

/// The time on the clock that stamps files, in seconds since 1970: a server's may differ from this host's.
pub(super) fn servers_now(directory: &Path) -> io::Result<i64> {
    let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let path = folder(directory)?.join(format!("clock-{}", unique.trim()));
    let stamped = fs::File::create_new(&path).and_then(|file| file.metadata()).map(|metadata| metadata.mtime());
    // Nobody else knows its name, so that it does not matter when the deletion takes effect.
    let _ = fs::remove_file(&path);
    stamped
}

/// The daemons that live, this one's own file excepted; the files of those that do not are removed.
#[must_use]
pub fn others(directory: &Path, own: Option<&Node>) -> Vec<Identity> {
    let Ok(now) = servers_now(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for _ in 0..LOOKS_MAX {
        let mut changed = false;
        found.clear();
        for path in nodes(directory).into_iter().filter(|path| own.is_none_or(|own| own.path != *path)) {
            match living(&path, now) {
                Some(Life::Lives(identity)) => found.push(identity),
                Some(Life::Over) => {}
                // A daemon whose lock was dropped has just put another one into its place.
                None => changed = true,
            }
        }
        if !changed {
            break;
        }
    }
    found
}

fn nodes(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory.join(FOLDER)) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_node = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    paths.filter(is_node).take(NODES_MAX).collect()
}

/// Whether a node's daemon lives.
enum Life {
    Lives(Identity),
    Over,
}

/// Looks at a node's file. `None`: it is not there any more, or not written yet.
fn living(path: &Path, now: i64) -> Option<Life> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::File::options().read(true).write(true).custom_flags(flags).open(path).ok()?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(&file, NODE_BYTES_MAX), &mut text).ok()?;
    // A daemon whose lock was dropped makes itself a new file at once: a young one is alive, although nobody locks it.
    let young = now - file.metadata().ok()?.mtime() < YOUNG_SECONDS;
    if !young && fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(Some(Mode::Exclusive), (0, 0)))).is_ok() {
        leave(path);
        return Some(Life::Over);
    }
    serde_json::from_str(&text).ok().map(Life::Lives)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(instance: &str, mount: &str) -> Identity {
        let text = serde_json::json!({
            "node": "files", "instance": instance, "mount": mount, "client": "files", "pid": 1, "user": 0
        });
        serde_json::from_value(text).unwrap()
    }

    /// Daemons of one host, each in a network namespace of its own by its unit, use one NFS client; two hosts with one name clash,
    /// also if one's daemon is older and says nothing of its mount.
    #[test]
    fn hosts_clash_and_daemons_of_a_host_do_not() {
        let one = identity("boot1/net1", "boot1/mount1");
        for (other, clashes) in [
            (identity("boot1/net1", "boot1/mount1"), false),
            (identity("boot1/net2", "boot1/mount1"), false),
            (identity("boot1/net1", "boot1/mount2"), false),
            (identity("boot1/net2", "boot1/mount2"), true),
            (identity("boot2/net1", "boot2/mount1"), true),
            (identity("boot2/net1", ""), true),
        ] {
            assert_eq!((one.clashes_with(&other), other.clashes_with(&one)), (clashes, clashes), "{other:?}");
        }
        let unknown = identity("boot1/net2", "");
        assert!(unknown.clashes_with(&identity("boot1/net1", "")), "two that say nothing");
    }

    /// A file of an older daemon is read.
    #[test]
    fn older_files_are_read() {
        let text = r#"{"node":"a","instance":"b/1","client":"a","pid":2,"user":3}"#;
        let older: Identity = serde_json::from_str(text).unwrap();
        assert_eq!((older.mount.as_str(), older.user), ("", 3));
    }

    /// A folder takes the directory's mode, and where that has the set-group-ID bit, inherits it: a unit with RestrictSUIDSGID= may
    /// not set it.
    #[test]
    fn the_folder_is_like_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o2770, 0o2750, 0o1777] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let made = folder(directory.path()).unwrap();
            assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, mode);
            fs::remove_dir(made).unwrap();
        }
    }
}
