//! [`Presence`]: a daemon's own file in `DIR/.distrilock/` on a network file system. It says who
//! the daemon is, for the daemons of other hosts. It is locked for as long as the daemon runs, and
//! the daemon listens to the server through it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::uio::pread;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::network::Network;
use super::ranges::ALL;
use super::{daemon_folder, ofd_lock};
use crate::clock::now_ms;
use crate::host::host_name;
use crate::limits::FOLDER_ENTRIES_MAX;
use crate::shortage::is_shortage;
use distrilock_engine::Mode;

/// How many times a file is created again because another daemon has removed it.
const ATTEMPTS_MAX: u8 = 20;

/// How many files of other daemons are looked at.
const PRESENCES_MAX: usize = 4096;

/// How many times the files are looked at because one has changed meanwhile.
const LOOKS_MAX: u8 = 10;

/// A file younger than this belongs to a daemon that runs, locked or not.
const YOUNG_SECONDS: i64 = 60;

/// The longest content of a file that is read.
const PRESENCE_BYTES_MAX: u64 = 4096;

/// A daemon as others see it: the content of its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The host's name.
    pub node: String,
    /// What distinguishes two NFS clients that run at the same time: the kernel's boot and the
    /// network namespace.
    pub instance: String,
    /// The kernel's boot and the device of the mount. A daemon in a network namespace of its own
    /// (PrivateNetwork=) still uses the NFS client of the namespace in which the directory was
    /// mounted. Older daemons do not write it; then it is empty.
    #[serde(default)]
    pub mount: String,
    /// The name under which this host's kernel introduces itself to NFSv4 servers (nfs(5),
    /// "nfs4_unique_id").
    pub client: String,
    /// The daemon's process.
    pub pid: u32,
    /// The user that it runs as.
    pub user: u32,
}

impl DaemonInfo {
    /// This process, on a lock directory.
    ///
    /// # Errors
    /// If the system has no resources for it just now. What is missing for another reason is left
    /// out.
    pub fn of_this_process(directory: &Path) -> io::Result<Self> {
        let node = host_name();
        let read = |path: &str| known(fs::read_to_string(path).map(|text| text.trim().to_owned()));
        let boot = read("/proc/sys/kernel/random/boot_id")?;
        let network = known(fs::metadata("/proc/self/ns/net").map(|namespace| namespace.ino()))?;
        let device = known(fs::metadata(directory).map(|directory| directory.dev()))?;
        let unique =
            [read("/sys/fs/nfs/net/nfs_client/identifier")?, read("/sys/module/nfs/parameters/nfs4_unique_id")?];
        let unique = unique.into_iter().find(|text| !text.is_empty() && text != "(null)").unwrap_or_default();
        Ok(Self {
            client: if unique.is_empty() { node.clone() } else { format!("{unique}/{node}") },
            node,
            instance: format!("{boot}/{network}"),
            mount: if boot.is_empty() { boot } else { format!("{boot}/{device}") },
            pid: std::process::id(),
            user: nix::unistd::geteuid().as_raw(),
        })
    }

    /// Whether another daemon's host introduces itself to the server by the same name, so that each
    /// wipes the other's locks.
    #[must_use]
    pub fn clashes_with(&self, other: &Self) -> bool {
        let one_mount = !self.mount.is_empty() && self.mount == other.mount;
        self.client == other.client && self.instance != other.instance && !one_mount
    }
}

/// The value, or an empty one if it cannot be had; an error if there are no resources just now.
fn known<T: Default>(value: io::Result<T>) -> io::Result<T> {
    match value {
        Err(error) if is_shortage(&error) => Err(error),
        value => Ok(value.unwrap_or_default()),
    }
}

/// This daemon's own file, locked.
#[derive(Debug)]
pub struct Presence {
    path: PathBuf,
    file: fs::File,
}

/// Whether the server still knows the lock on a daemon's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceLock {
    /// It does.
    Known,
    /// It has forgotten the lock: every lock of this host is in doubt.
    Forgotten,
}

impl Presence {
    /// Creates the file and locks it.
    ///
    /// # Errors
    /// If the folder or the file cannot be created or locked.
    pub fn announce(directory: &Path, network: &Network, info: &DaemonInfo) -> io::Result<Self> {
        let folder = daemon_folder::create(directory)?;
        // Not a link to another folder.
        daemon_folder::open(directory)?;
        for _ in 0..ATTEMPTS_MAX {
            let presence = Self::create(&folder, network, info)?;
            if ofd_lock::set(&presence.file, Some(Mode::Exclusive), ALL)? && presence.is_named()? {
                return Ok(presence);
            }
            // Before it was locked, another daemon took it for one that was left behind.
            leave(&presence.path);
        }
        Err(io::Error::other("other daemons keep removing this one's file"))
    }

    fn create(folder: &Path, network: &Network, info: &DaemonInfo) -> io::Result<Self> {
        let path = folder.join(daemon_folder::unique_name(daemon_folder::PRESENCE_PREFIX)?);
        let mut text = serde_json::to_vec(info).expect("it is plain text and numbers");
        text.push(b'\n');
        let flags = network.open_flags().bits();
        let mut options = fs::File::options();
        options.write(true).create_new(true).mode(network.permissions()).custom_flags(flags);
        let mut written = options.open(&path)?;
        written.write_all(&text)?;
        written.sync_all()?;
        drop(written);
        let file = fs::File::options().read(true).write(true).custom_flags(flags).open(&path)?;
        Ok(Self { path, file })
    }

    /// Whether the file is still there under its name, bypassing the caches.
    fn is_named(&self) -> io::Result<bool> {
        let folder = self.path.parent().expect("it lies in the folder of the daemons");
        statx(CWD, folder, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads through the locked file, bypassing the caches. This may take as long as the server
    /// does not answer.
    ///
    /// # Errors
    /// If the read fails in a way that says nothing about the lock.
    pub fn listen(&self, network: &Network) -> io::Result<PresenceLock> {
        let sent_ms = now_ms();
        match pread(&self.file, &mut [0; 8], 0) {
            Ok(_) => {
                network.heard(sent_ms);
                Ok(PresenceLock::Known)
            }
            Err(Errno::EIO | Errno::ESTALE | Errno::EBADF) => {
                network.broken();
                Ok(PresenceLock::Forgotten)
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

/// Removes a daemon's own file because the daemon stops or has another one. Nobody uses the name
/// again, so it does not matter when the deletion takes effect. If it fails, a daemon that looks
/// around later removes the file.
pub fn leave(presence: &Path) {
    let _ = fs::remove_file(presence);
}

/// Returns the daemons that run, except for the one whose file is `own`. Removes the files of
/// daemons that do not run any more. `flags` are the mount's
/// [`open_flags`](super::mount::Mount::open_flags).
///
/// # Errors
/// If the system has no resources for it just now. What cannot be read for another reason is left
/// out.
pub fn others(directory: &Path, flags: OFlag, own: Option<&Path>) -> io::Result<Vec<DaemonInfo>> {
    let Some(now) = known(daemon_folder::server_time(directory).map(Some))? else { return Ok(Vec::new()) };
    let own = own.and_then(Path::file_name);
    let mut found = Vec::new();
    for _ in 0..LOOKS_MAX {
        let mut changed = false;
        found.clear();
        for name in known(presences(directory))?.into_iter().filter(|name| own.is_none_or(|own| own != name.as_str())) {
            match look_at(directory, &name, flags, now)? {
                Some(DaemonState::Runs(info)) => found.push(info),
                Some(DaemonState::Ended | DaemonState::Foreign) => {}
                // A daemon whose lock was dropped has just replaced its file.
                None => changed = true,
            }
        }
        if !changed {
            break;
        }
    }
    Ok(found)
}

fn presences(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(daemon_folder::path(directory))?;
    let names = entries.take(FOLDER_ENTRIES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(daemon_folder::PRESENCE_PREFIX)).take(PRESENCES_MAX).collect())
}

/// Whether the daemon of a file runs.
enum DaemonState {
    Runs(DaemonInfo),
    Ended,
    /// This is not a file that a daemon writes.
    Foreign,
}

/// Looks at a daemon's file. Returns `None` if the file is gone, or not written yet.
fn look_at(directory: &Path, name: &str, flags: OFlag, now: i64) -> io::Result<Option<DaemonState>> {
    let file = match daemon_folder::open_file(directory, name, daemon_folder::with(flags), 0) {
        Ok(file) => file,
        Err(error) if is_shortage(&error) => return Err(error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => return Ok(Some(DaemonState::Foreign)),
    };
    let mut text = Vec::new();
    let read = io::Read::read_to_end(&mut io::Read::take(&file, PRESENCE_BYTES_MAX), &mut text);
    let (Some(_), Some(metadata)) = (known(read.map(Some))?, known(file.metadata().map(Some))?) else {
        return Ok(None);
    };
    // A daemon whose lock was dropped creates a new file at once. So a daemon with a young file
    // runs, even if the file is not locked.
    let young = now - metadata.mtime() < YOUNG_SECONDS;
    if !young && ofd_lock::set(&file, Some(Mode::Exclusive), ALL) == Ok(true) {
        leave(&daemon_folder::path(directory).join(name));
        return Ok(Some(DaemonState::Ended));
    }
    Ok(serde_json::from_slice(&text).ok().map(DaemonState::Runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(instance: &str, mount: &str) -> DaemonInfo {
        let text = serde_json::json!({
            "node": "files", "instance": instance, "mount": mount, "client": "files", "pid": 1, "user": 0
        });
        serde_json::from_value(text).unwrap()
    }

    /// Daemons of one host use one NFS client, even if their unit gives each its own network
    /// namespace. Two hosts with one name clash, even if one's daemon is older and does not mention
    /// its mount.
    #[test]
    fn hosts_clash_and_daemons_of_a_host_do_not() {
        let one = daemon("boot1/net1", "boot1/mount1");
        for (other, clashes) in [
            (daemon("boot1/net1", "boot1/mount1"), false),
            (daemon("boot1/net2", "boot1/mount1"), false),
            (daemon("boot1/net1", "boot1/mount2"), false),
            (daemon("boot1/net2", "boot1/mount2"), true),
            (daemon("boot2/net1", "boot2/mount1"), true),
            (daemon("boot2/net1", ""), true),
        ] {
            assert_eq!((one.clashes_with(&other), other.clashes_with(&one)), (clashes, clashes), "{other:?}");
        }
        let unknown = daemon("boot1/net2", "");
        assert!(unknown.clashes_with(&daemon("boot1/net1", "")), "two that do not mention it");
    }

    /// Without descriptors nothing is known of this daemon or the others. Without a file, that is
    /// what is known.
    #[test]
    fn a_shortage_is_not_an_answer() {
        assert_eq!(known::<u64>(Err(Errno::EMFILE.into())).unwrap_err().raw_os_error(), Some(Errno::EMFILE as i32));
        assert_eq!(known::<u64>(Err(Errno::ENOENT.into())).unwrap(), 0);
        assert_eq!(known(Ok(7)).unwrap(), 7);
    }

    /// A file that an older daemon wrote is read.
    #[test]
    fn older_files_are_read() {
        let text = r#"{"node":"a","instance":"b/1","client":"a","pid":2,"user":3}"#;
        let older: DaemonInfo = serde_json::from_str(text).unwrap();
        assert_eq!((older.mount.as_str(), older.user), ("", 3));
    }
}
