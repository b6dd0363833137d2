//! What only root can set up: small and read-only file systems under the lock directory. These tests belong to the
//! feature `system-tests`; all others run as anybody.

mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use nix::unistd::Uid;
use serde_json::json;
use support::{Daemon, V1};
use tempfile::TempDir;

/// A small tmpfs, unmounted at the end.
struct Mount(TempDir);

impl Mount {
    fn new(options: &str) -> Self {
        assert!(Uid::effective().is_root(), "the system tests mount file systems: run them as root");
        let place = TempDir::new().expect("a directory");
        let options = format!("mode=0755,{options}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place.path()));
        Self(place)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, option: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(self.path()));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().expect("the command runs");
    assert!(status.success(), "{command:?}: {status}");
}

#[track_caller]
fn storage_fails(client: &mut V1, path: &Path, lock: &str, reason: &str) {
    let reply = client.request(json!({"op": "acquire", "lock": lock}));
    assert_eq!(reply["error"], "storage", "{reply}");
    let message = reply["message"].as_str().expect("a message").to_lowercase();
    let file = path.join(format!("{lock}.lck")).to_string_lossy().to_lowercase();
    assert!(message.contains(reason) && message.contains(&file), "{message}");
}

/// A full file system refuses new names as `storage`; names that are held stay held, and room helps at once.
#[test]
fn a_full_file_system() {
    let mount = Mount::new("size=64k,nr_inodes=8");
    let daemon = Daemon::setup().directory(mount.path()).flag("--linger", "0").start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("before");
    let mut fillers = Vec::new();
    while let Ok(mut file) = File::create(mount.path().join(format!("filler{}", fillers.len()))) {
        let _ = file.write_all(&[0; 8192]);
        fillers.push(file);
    }
    storage_fails(&mut client, mount.path(), "during", "no space left on device");
    let reply = client.request(json!({"op": "verify", "lock": "before"}));
    assert_eq!(reply["ok"], true, "{reply}");
    client.release("before");
    client.acquire("during");
}

/// A file system that turns read-only refuses as `storage`, and serves again when it can be written.
#[test]
fn a_file_system_that_turns_read_only() {
    let mount = Mount::new("size=1m");
    let daemon = Daemon::setup().directory(mount.path()).flag("--linger", "0").start();
    let mut client = V1::connect(&daemon.tcp());
    mount.remount("ro");
    storage_fails(&mut client, mount.path(), "during", "read-only file system");
    client.ping();
    mount.remount("rw");
    client.acquire("during");
}

/// A daemon does not start on a read-only file system, and says why.
#[test]
fn a_file_system_that_is_read_only() {
    let mount = Mount::new("size=1m,ro");
    let said = Daemon::setup().directory(mount.path()).start_refused().to_lowercase();
    assert!(said.contains(&*mount.path().to_string_lossy().to_lowercase()), "{said}");
    assert!(said.contains("read-only"), "{said}");
}
