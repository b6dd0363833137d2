//! What the doctor checks about the file system: kind, version, timing, client identifiers, owners.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::finding::Finding;
use crate::directory::Directory;
use crate::files::mount::{Mount, Nfs4};
use crate::files::presence::{DaemonInfo, others};
use crate::files::trial_lock;
use crate::shortage::is_shortage;

/// How many lock files are looked at.
const FILES_MAX: usize = 1000;

pub(super) fn examine(directory: &Directory, findings: &mut Vec<Finding>) {
    let Directory { path, mount, timing } = directory;
    const WHY: &str = "a lost lock can be noticed in time only if the server's leases are known";
    match mount {
        Mount::Local => {
            findings.push(Finding::ok(
                "file system",
                WHY,
                format!("{} is local: locks cannot be lost", path.display()),
            ));
            return;
        }
        Mount::Unknown { kind } => findings.push(Finding::warning(
            "file system",
            WHY,
            format!("{} is on {kind}, which nobody has tested", path.display()),
            "use NFSv4 or a local file system",
        )),
        Mount::Nfs4(nfs) => {
            let found = format!("{} is {} at {}", path.display(), mount.describe(), nfs.place.display());
            findings.push(Finding::ok("file system", WHY, found));
            nfs4(nfs, findings);
        }
    }
    if let Some(timing) = timing {
        let why = "a holder has to stop before the server gives its lock away";
        findings.push(Finding::ok("timing", why, timing.to_string()));
    }
    if matches!(mount, Mount::Nfs4(nfs) if nfs.minor > 0) {
        findings.push(clients(path, mount));
    }
    findings.push(owners(path, mount));
}

fn nfs4(nfs: &Nfs4, findings: &mut Vec<Finding>) {
    const VERSION: &str = "4.1 and 4.2 wake waiters, and make it safe to delete lock files from this host";
    let version = format!("4.{}", nfs.minor);
    findings.push(if nfs.minor == 0 {
        let remedy = "mount it with vers=4.2; until then, run distrilock gc on the server";
        Finding::warning("version", VERSION, version, remedy)
    } else {
        Finding::ok("version", VERSION, version)
    });
    let why = "a lock that timed out or is local would exclude nobody";
    findings.push(Finding::ok("mount options", why, nfs.options.join(",")));
    const RECOVER: &str =
        "if it is on, the kernel silently takes lost locks again, although another host may have had them meanwhile";
    let recover = fs::read_to_string("/sys/module/nfs/parameters/recover_lost_locks").unwrap_or_default();
    findings.push(if recover.trim() == "Y" {
        let remedy = "set nfs.recover_lost_locks=N (/etc/modprobe.d: options nfs recover_lost_locks=0) and reboot";
        Finding::wrong("recover_lost_locks", RECOVER, "Y", remedy)
    } else {
        Finding::ok("recover_lost_locks", RECOVER, "N")
    });
}

/// The doctor itself has no resources to find something out.
fn unknown(check: &'static str, why: &'static str, error: &io::Error) -> Finding {
    const REMEDY: &str = "raise the limit of open files (ulimit -n), and run the doctor again";
    Finding::warning(check, why, format!("cannot be found out: {error}"), REMEDY)
}

fn clients(directory: &Path, mount: &Mount) -> Finding {
    const WHY: &str = "two hosts that the server knows by one name wipe each other's locks";
    let looked =
        DaemonInfo::of_this_process(directory).and_then(|own| Ok((others(directory, mount.open_flags(), None)?, own)));
    let (others, own) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            return unknown("client identifier", WHY, &error);
        }
    };
    match others.into_iter().find(|other| own.clashes_with(other)) {
        None => Finding::ok("client identifier", WHY, format!("{:?}; no other daemon's host has it", own.client)),
        Some(other) => Finding::wrong(
            "client identifier",
            WHY,
            format!("{:?}; the host of another daemon (process {}) has the same one", own.client, other.pid),
            "give the hosts different names, or set nfs4_unique_id (nfs(5)); then mount again",
        ),
    }
}

/// Whether daemons that run as other users (by number) can use the files.
fn owners(directory: &Path, mount: &Mount) -> Finding {
    const WHY: &str = "every host has to be able to read and write the lock files that one host's daemon creates";
    const REMEDY: &str = "give the daemons the same user or group number on all hosts and the directory mode 2770, or export \
                          it with all_squash,anonuid=,anongid= (docs/nfs.md)";
    let Ok(metadata) = fs::metadata(directory) else {
        return Finding::wrong("owners", WHY, "the directory's mode cannot be read", REMEDY);
    };
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let locks = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "lck"));
    for entry in locks.take(FILES_MAX) {
        let Err(error) = trial_lock::open(&entry.path(), mount) else { continue };
        if is_shortage(&error) {
            return unknown("owners", WHY, &error);
        }
        if error.kind() == io::ErrorKind::PermissionDenied {
            let owner = entry.metadata().map(|metadata| format!("{}:{}", metadata.uid(), metadata.gid()));
            let found = format!("{} of {} cannot be opened", entry.path().display(), owner.unwrap_or_default());
            return Finding::wrong("owners", WHY, found, REMEDY);
        }
    }
    let mode = metadata.mode();
    let found = format!("{}:{}, mode {:o}", metadata.uid(), metadata.gid(), mode & 0o7777);
    if mode & 0o022 == 0 {
        let others = match others(directory, mount.open_flags(), None) {
            Ok(others) => others,
            Err(error) => return unknown("owners", WHY, &error),
        };
        if others.iter().any(|other| other.user != nix::unistd::geteuid().as_raw()) {
            return Finding::warning("owners", WHY, format!("{found}; other daemons run as other users"), REMEDY);
        }
    }
    if mode & 0o020 != 0 && mode & 0o2002 == 0 {
        let remedy = "run chmod g+s DIR, so that lock files get the directory's group";
        return Finding::warning(
            "owners",
            WHY,
            format!("{found}: writable by the group, but without the set-group-ID bit"),
            remedy,
        );
    }
    Finding::ok("owners", WHY, found)
}
