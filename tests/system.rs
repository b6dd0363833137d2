//! Situations that only root can set up: small and read-only file systems under the lock directory,
//! and hosts that are cut off. These tests belong to the feature `system-tests`; all others run as
//! any user.

mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use serde_json::json;
use support::{Daemon, V1, Ws, eventually};
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

/// A full file system refuses new names as `storage`. Held names stay held, and room helps at once.
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

/// A file system that turns read-only refuses as `storage`, and serves again when it becomes
/// writable.
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

/// A separate host: a network namespace, connected to this one by a pair of virtual cables.
struct Host {
    name: String,
    cable: String,
    address: String,
}

impl Host {
    fn new(number: u8) -> Self {
        assert!(Uid::effective().is_root(), "the system tests make network namespaces: run them as root");
        let process = std::process::id();
        let (name, cable) = (format!("distrilock-{process}-{number}"), format!("dl{}-{number}", process % 100_000));
        let address = format!("10.{}.{}.1", 200 + number, process % 250);
        let there = format!("10.{}.{}.2", 200 + number, process % 250);
        let ip = |line: &str| run(Command::new("ip").args(line.split(' ')));
        ip(&format!("netns add {name}"));
        let host = Self { name, cable, address };
        let Self { name, cable, address } = &host;
        ip(&format!("link add {cable} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add {address}/24 dev {cable}"));
        ip(&format!("link set {cable} up"));
        ip(&format!("-n {name} addr add {there}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        host
    }

    /// Runs `work` on the host: a socket that it opens stays there for good.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).expect("the namespace has a file");
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
                work()
            });
            there.join().expect("the work does not panic")
        })
    }

    /// Pulls the cable: no FIN, no RST, no answer to anything.
    fn cut_off(&self) {
        run(Command::new("ip").args(["-n", &self.name, "link", "set", "eth0", "down"]));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // One of the two may have disappeared with the other.
        let _ = Command::new("ip").args(["link", "del", &self.cable]).stderr(std::process::Stdio::null()).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A host that is cut off silently loses its sessions after `--dead-after`, on both fronts, whether
/// its client was silent or was being written to; its locks are free then, and no earlier.
#[test]
fn dead_peers() {
    const DEAD_AFTER: Duration = Duration::from_secs(4);
    let host = Host::new(1);
    let any = format!("{}:0", host.address);
    let daemon = Daemon::setup().tcp("127.0.0.1:0").tcp(&any).ws(&any).flag("--dead-after", "4").start();
    let (tcp, ws) = (daemon.addresses("tcp")[1].clone(), daemon.ws());

    let mut near = V1::connect(&daemon.tcp());
    near.acquire("written");
    let far = host.run(|| {
        let mut silent = V1::connect(&tcp);
        silent.acquire("silent");
        let mut silent_ws = Ws::connect(&ws);
        silent_ws.acquire("silent-ws");
        let mut waiting = V1::connect(&tcp);
        waiting.send(&json!({"op": "acquire", "lock": "written", "wait_ms": null}));
        waiting.ping();
        (silent, silent_ws, waiting)
    });
    let peek = |near: &mut V1, lock: &str| near.request(json!({"op": "peek", "lock": lock}))["locked"] == true;
    assert!(peek(&mut near, "silent") && peek(&mut near, "silent-ws"));

    let cut = Instant::now();
    host.cut_off();
    // The grant is written to a host that does not acknowledge it.
    near.release("written");
    let mut held: Vec<&str> = vec!["silent", "silent-ws", "written"];
    eventually("every lock of the dead host is free", || {
        held.retain(|lock| {
            let locked = peek(&mut near, lock);
            let elapsed = cut.elapsed();
            assert!(locked || elapsed > DEAD_AFTER / 2, "{lock} was freed after {elapsed:?} already");
            if !locked {
                println!("{lock} was free {elapsed:?} after the cut");
            }
            locked
        });
        held.is_empty()
    });
    assert!(cut.elapsed() < 5 * DEAD_AFTER, "freed only after {:?}", cut.elapsed());
    drop(far);
}
