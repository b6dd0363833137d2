//! What kind of file system is under the lock directory, and whether locks on it can be trusted.

use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Every file in a lock directory on NFSv4 that any of our programs locks, or opens to read and
/// write, is opened with this flag. That is a rule, not a detail (decision 19): with it, the client
/// asks for no delegation. knfsd grants a write delegation with every other such open from Linux
/// 6.6 on. Locks then never leave the host, and a host that is cut off can grant itself what the
/// server has given to another.
pub const NO_DELEGATION: OFlag = OFlag::O_DIRECT;
use crate::shortage::is_shortage;

/// The file system under a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// On a disk or in the memory of this host.
    Local,
    /// NFS version 4.
    Nfs4(Nfs4),
    /// A cluster or network file system whose locks nobody has tested with distrilock.
    Unknown {
        /// Its type, as in /proc/self/mountinfo.
        kind: String,
    },
}

/// An NFSv4 mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nfs4 {
    /// The minor version: 0, 1 or 2.
    pub minor: u8,
    /// What is mounted, as in `server:/path`.
    pub source: String,
    /// Where it is mounted.
    pub place: PathBuf,
    /// Its options, as the kernel reports them.
    pub options: Vec<String>,
    /// The server's lease time in seconds, if the kernel reports it.
    pub lease_seconds: Option<u64>,
}

/// Why a directory must not be used for locks. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum MountError {
    #[error("cannot find out what is mounted: {0}; /proc has to be mounted")]
    Unreadable(#[from] io::Error),
    #[error(
        "{} is on no mount listed in /proc/self/mountinfo; specify the directory by the path at which it is mounted",
        .0.display()
    )]
    Nowhere(PathBuf),
    #[error(
        "{source_} is mounted at {} as NFS version {version}, whose locks outlive their holders; mount it with vers=4.2",
        place.display()
    )]
    OldNfs { source_: String, place: PathBuf, version: String },
    #[error("{source_} is mounted at {} with {option}: {why}; mount it {remedy}", place.display())]
    Option_ { source_: String, place: PathBuf, option: String, why: &'static str, remedy: &'static str },
    #[error(
        "{} has a mount unit, {unit}, but nothing is mounted there: locks in the empty directory would exclude nobody; \
         run: systemctl start {unit}, and give the service RequiresMountsFor= with the lock directory", place.display()
    )]
    NotMounted { place: PathBuf, unit: String },
}

/// Options that make an NFS mount unsafe: the option, why, and how to mount instead.
const UNSAFE_OPTIONS: [(&str, &str, &str); 6] = [
    ("soft", "an unlock that times out counts as done, and a lock as granted", "hard"),
    ("softerr", "an unlock that times out counts as done, and a lock as granted", "hard"),
    ("ro", "lock files cannot be created", "read-write"),
    ("nolock", "locks would stay on this host", "without nolock"),
    ("local_lock=all", "locks would stay on this host", "with local_lock=none"),
    ("local_lock=posix", "locks would stay on this host", "with local_lock=none"),
];

/// File systems that several hosts can share, or whose inode numbers are unreliable, by their type
/// in mountinfo.
const UNKNOWN: [&str; 17] = [
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "fuseblk", "gfs2", "gpfs", "lustre", "ncpfs",
    "ocfs2", "orangefs", "smb3", "virtiofs",
];

/// Where systemd keeps its units, including those that it generates from /etc/fstab
/// (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/lib/systemd/system"];

impl Mount {
    /// The flag with which every file on it is opened to read and write.
    #[must_use]
    pub fn open_flags(&self) -> OFlag {
        match self {
            Self::Nfs4(_) => NO_DELEGATION,
            // There are no such delegations, and O_DIRECT may be refused.
            Self::Local | Self::Unknown { .. } => OFlag::empty(),
        }
    }

    /// Recognises what is mounted under a directory, a path without symbolic links.
    ///
    /// # Errors
    /// If locks there cannot be trusted.
    pub fn under(directory: &Path) -> Result<Self, MountError> {
        let entries = entries(&fs::read("/proc/self/mountinfo")?);
        missing(directory, &entries, &UNIT_FOLDERS.map(PathBuf::from))?;
        let stats = match fs::read("/proc/self/mountstats") {
            Err(error) if is_shortage(&error) => return Err(error.into()),
            stats => stats.unwrap_or_default(),
        };
        mounted(directory, &entries)?.check(&stats)
    }

    /// Looks again whether this is still what is mounted under a directory. Returns what else it is
    /// if it is not. `table` is /proc/self/mountinfo, open: this takes no descriptor.
    ///
    /// # Errors
    /// If the system has no resources for it just now.
    pub fn changed(&self, directory: &Path, table: &mut fs::File) -> io::Result<Option<String>> {
        let looked = entries_of(table).and_then(|entries| {
            let now = mounted(directory, &entries)?.check(&[])?;
            Ok((now, entries))
        });
        let unfit = match looked {
            Ok((now, _)) if now.is_like(self) => return Ok(None),
            // A mount unit explains best what is wrong.
            Ok((now, entries)) => match missing(directory, &entries, &UNIT_FOLDERS.map(PathBuf::from)) {
                Err(unfit @ MountError::NotMounted { .. }) => unfit,
                _ => return Ok(Some(format!("it was {} and is {} now", self.describe(), now.describe()))),
            },
            Err(MountError::Unreadable(error)) if is_shortage(&error) => return Err(error),
            Err(unfit) => unfit,
        };
        Ok(Some(unfit.to_string()))
    }

    /// Whether locks on both mean the same.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nfs4(one), Self::Nfs4(two)) => (one.minor, &one.source) == (two.minor, &two.source),
            (one, two) => one == two,
        }
    }

    /// Describes it for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Local => "a local file system".into(),
            Self::Nfs4(nfs) => format!("{} by NFS 4.{}", nfs.source, nfs.minor),
            Self::Unknown { kind } => kind.clone(),
        }
    }

    /// The word for it in the protocol and in logs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nfs4(_) => "nfs4",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// The mounts in the kernel's table.
fn entries(table: &[u8]) -> Vec<Entry> {
    table.split(|byte| *byte == b'\n').filter_map(Entry::parse).collect()
}

/// The same, read from its beginning.
fn entries_of(table: &mut fs::File) -> Result<Vec<Entry>, MountError> {
    let mut bytes = Vec::new();
    table.rewind()?;
    table.read_to_end(&mut bytes)?;
    Ok(entries(&bytes))
}

/// The mount that a directory is on.
fn mounted<'a>(directory: &Path, entries: &'a [Entry]) -> Result<&'a Entry, MountError> {
    let device = fs::metadata(directory)?.dev();
    entry_of(directory, device, entries).ok_or_else(|| MountError::Nowhere(directory.to_owned()))
}

/// A line of /proc/self/mountinfo (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    device: (u64, u64),
    place: PathBuf,
    kind: String,
    source: String,
    options: Vec<String>,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |at: usize| fields.get(at).map(|field| String::from_utf8_lossy(&unescaped(field)).into_owned());
        let device = text(2)?;
        let (major, minor) = device.split_once(':')?;
        let (own, all) = (text(5)?, text(dash + 3)?);
        let options = own.split(',').chain(all.split(',')).map(str::to_owned).collect();
        Some(Self {
            device: (major.parse().ok()?, minor.parse().ok()?),
            place: std::ffi::OsString::from_vec(unescaped(fields.get(4)?)).into(),
            kind: text(dash + 1)?,
            source: text(dash + 2)?,
            options,
        })
    }

    /// Whether locks on it can be trusted. `stats` is the content of /proc/self/mountstats.
    fn check(&self, stats: &[u8]) -> Result<Mount, MountError> {
        let (source_, place) = (self.source.clone(), self.place.clone());
        if self.kind != "nfs" && self.kind != "nfs4" {
            let base = self.kind.split('.').next().unwrap_or_default();
            let unknown = UNKNOWN.contains(&base);
            return Ok(if unknown { Mount::Unknown { kind: self.kind.clone() } } else { Mount::Local });
        }
        let version = self.option("vers=").or_else(|| self.option("nfsvers=")).unwrap_or("3");
        let Some(minor) = version.strip_prefix('4').map(|rest| rest.trim_start_matches('.').parse().unwrap_or(0))
        else {
            return Err(MountError::OldNfs { source_, place, version: version.into() });
        };
        for (option, why, remedy) in UNSAFE_OPTIONS {
            if self.options.iter().any(|given| given == option) {
                return Err(MountError::Option_ { source_, place, option: option.into(), why, remedy });
            }
        }
        let lease_seconds = lease_seconds(stats, &self.place);
        Ok(Mount::Nfs4(Nfs4 { minor, source: source_, place, options: self.options.clone(), lease_seconds }))
    }

    fn option(&self, prefix: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(prefix))
    }
}

/// The mount that a directory is on: of those on the path to it, the deepest one that has its
/// device. Of several at the same place it is the last one, which hides the others.
fn entry_of<'a>(directory: &Path, device: u64, entries: &'a [Entry]) -> Option<&'a Entry> {
    let device = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let on_the_path = |entry: &&Entry| directory.starts_with(&entry.place);
    // btrfs gives each subvolume a device of its own, which mountinfo does not list.
    let longest = |entries: &mut dyn Iterator<Item = &'a Entry>| {
        entries.enumerate().max_by_key(|(n, entry)| (entry.place.as_os_str().len(), *n)).map(|(_, entry)| entry)
    };
    longest(&mut entries.iter().filter(on_the_path).filter(|entry| entry.device == device))
        .or_else(|| longest(&mut entries.iter().filter(on_the_path)))
}

/// Whether a mount unit is for a network file system. (Units for others, such as tmp.mount, may
/// exist without being wanted.)
fn mounts_from_network(unit: &Path) -> io::Result<bool> {
    let text = match fs::read_to_string(unit) {
        // It may well exist.
        Err(error) if is_shortage(&error) => return Err(error),
        text => text.unwrap_or_default(),
    };
    let kind = text.lines().find_map(|line| line.trim().strip_prefix("Type=")).unwrap_or_default().trim();
    Ok(kind.starts_with("nfs") || UNKNOWN.contains(&kind.split('.').next().unwrap_or_default()))
}

/// Fails if a place on the path to the directory has a mount unit, but nothing is mounted there.
fn missing(directory: &Path, entries: &[Entry], folders: &[PathBuf]) -> Result<(), MountError> {
    for place in directory.ancestors().filter(|place| place.parent().is_some()) {
        if entries.iter().any(|entry| entry.place == place) {
            continue;
        }
        let unit = unit_of(place);
        for folder in folders {
            if mounts_from_network(&folder.join(&unit))? {
                return Err(MountError::NotMounted { place: place.to_owned(), unit });
            }
        }
    }
    Ok(())
}

/// The name of the unit that mounts a path (systemd.unit(5), "String escaping for inclusion in unit
/// names").
fn unit_of(place: &Path) -> String {
    use std::fmt::Write as _;
    let path = place.as_os_str().as_bytes();
    let mut unit = String::new();
    for (n, byte) in path.strip_prefix(b"/").unwrap_or(path).iter().enumerate() {
        match byte {
            b'/' => unit.push('-'),
            b'.' if n == 0 => unit.push_str("\\x2e"),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b':' | b'_' | b'.' => unit.push(char::from(*byte)),
            // Writing into a text cannot fail.
            byte => drop(write!(unit, "\\x{byte:02x}")),
        }
    }
    unit + ".mount"
}

/// The lease time of an NFSv4 mount. /proc/self/mountstats has a paragraph for each mount, with
/// `lease_time=` in it.
fn lease_seconds(stats: &[u8], place: &Path) -> Option<u64> {
    let stats = String::from_utf8_lossy(stats);
    let head = format!(" mounted on {} with fstype nfs", place.display());
    let mut lease = None;
    let mut within = false;
    for line in stats.lines() {
        if line.starts_with("device ") {
            within = line.contains(&head);
        } else if within && let Some((_, rest)) = line.split_once("lease_time=") {
            // A later mount hides an earlier one, so the last one counts.
            lease = rest.split(',').next().and_then(|number| number.parse().ok());
        }
    }
    lease
}

/// mountinfo has spaces and some other characters in octal, as in `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal =
            |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match tail.get(..3).and_then(octal) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
30 22 0:40 / /srv/locks rw,relatime - nfs4 files:/locks rw,vers=4.2,rsize=262144,hard,proto=tcp,local_lock=none,addr=10.0.0.1
31 22 0:41 / /srv/a\\040b rw - nfs4 files:/b rw,vers=4.1,soft,local_lock=none
32 22 0:42 / /old rw - nfs files:/c rw,vers=3,hard,local_lock=none
33 22 0:43 / /sealed ro - nfs4 files:/d rw,vers=4.2,hard,local_lock=none
34 22 0:44 / /alone rw - nfs4 files:/e rw,vers=4.0,hard,local_lock=all
35 22 0:45 / /ssh rw - fuse.sshfs host:/ rw";

    const STATS: &str = "\
device /dev/vda1 mounted on / with fstype ext4
device files:/locks mounted on /srv/locks with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2
\tnfsv4:\tbm0=0xfdffbfff,acl=0x3,sessions,pnfs=not configured,lease_time=90,lease_expired=0";

    fn entries() -> Vec<Entry> {
        TABLE.lines().filter_map(|line| Entry::parse(line.as_bytes())).collect()
    }

    fn at(directory: &str, minor: u64) -> Result<Mount, MountError> {
        let device = nix::sys::stat::makedev(if minor == 1 { 254 } else { 0 }, minor);
        entry_of(Path::new(directory), device, &entries()).unwrap().check(STATS.as_bytes())
    }

    /// Each kind of file system is recognised by the kernel's tables, with what matters about it.
    #[test]
    fn kinds_are_recognised() {
        assert_eq!(at("/var/lib/distrilock", 1).unwrap(), Mount::Local);
        let Mount::Nfs4(nfs) = at("/srv/locks/ci", 40).unwrap() else { panic!("it is NFSv4") };
        assert_eq!((nfs.minor, nfs.lease_seconds, &*nfs.source), (2, Some(90), "files:/locks"));
        assert_eq!(at("/ssh", 45).unwrap(), Mount::Unknown { kind: "fuse.sshfs".into() });
    }

    /// A mount on which a lock could be granted twice is refused, and the message says what to do.
    #[test]
    fn unsafe_mounts_are_refused() {
        for (directory, minor, parts) in [
            ("/srv/a b", 41, ["soft", "mount it hard"]),
            ("/old", 42, ["version 3", "vers=4.2"]),
            ("/sealed", 43, ["ro", "read-write"]),
            ("/alone", 44, ["local_lock=all", "local_lock=none"]),
        ] {
            let message = at(directory, minor).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{directory}: {message}");
        }
    }

    /// A directory whose mount is missing is empty and local, but its mount unit gives it away.
    #[test]
    fn a_missing_mount_is_noticed() {
        assert_eq!(unit_of(Path::new("/srv/a-b/.c")), "srv-a\\x2db-.c.mount");
        let folder = tempfile::tempdir().unwrap();
        for (unit, kind) in [("srv-gone", "nfs4"), ("srv-locks", "nfs4"), ("tmp", "tmpfs")] {
            fs::write(folder.path().join(unit).with_extension("mount"), format!("[Mount]\nType={kind}\n")).unwrap();
        }
        let folders = [folder.path().to_owned()];
        let message = missing(Path::new("/srv/gone/locks"), &entries(), &folders).unwrap_err().to_string();
        assert!(message.contains("systemctl start srv-gone.mount"), "{message}");
        missing(Path::new("/srv/locks/ci"), &entries(), &folders).unwrap();
        missing(Path::new("/tmp/locks"), &entries(), &folders).unwrap();
    }
}
