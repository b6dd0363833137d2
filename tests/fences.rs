//! Fences that cannot be granted, or not at once: nobody else waits for them, no number is
//! repeated, and no lock file stays behind.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use manager::Manager;
use nix::libc::F_WRLCK;
use serde_json::{Value, json};
use support::{Daemon, Setup, V1, eventually, files, lock_file};

const SERVICE: &str = include_str!("../systemd/distrilock.service");

fn setup() -> Setup {
    Daemon::setup().tcp("127.0.0.1:0")
}

fn mark(directory: &Path) -> PathBuf {
    directory.join(".distrilock/fence")
}

fn fenced(lock: &str) -> Value {
    json!({"op": "acquire", "lock": lock, "fence": true})
}

#[track_caller]
fn granted(client: &mut V1, lock: &str) -> u64 {
    let reply = client.request(fenced(lock));
    reply["fence"].as_u64().unwrap_or_else(|| panic!("no fence: {reply}"))
}

#[track_caller]
fn refused(reply: &Value) -> String {
    assert!(reply["ok"] == false && reply["error"] == "storage", "{reply}");
    reply["message"].as_str().expect("a message").to_owned()
}

/// The mark as another process keeps it locked.
#[track_caller]
fn locked_mark(directory: &Path) -> File {
    let file = File::options().read(true).write(true).open(mark(directory)).expect("a fence was granted");
    assert!(lock_file(&file, F_WRLCK), "nobody raises it");
    file
}

/// A text as daemons write it, with this number.
fn text(number: u64) -> String {
    let digits = format!("{number:020}");
    let hash = digits.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("distrilock fence {digits} {hash:08x}\n")
}

/// How many threads of the daemon have a name that begins so.
fn threads(daemon: &Daemon, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it lives");
    let names = tasks.map(|task| fs::read_to_string(task.expect("an entry").path().join("comm")).unwrap_or_default());
    names.filter(|own| own.starts_with(name)).count()
}

/// Another process keeps the mark locked, and clients ask for hundreds of fences: everybody else is
/// served meanwhile. A daemon without fences has no thread for them.
#[test]
fn nobody_waits_for_the_fences_of_others() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 64;
    let daemon = setup().flag("--threads", "1").start();
    let mut other = V1::connect(&daemon.tcp());
    other.acquire("plain");
    other.release("plain");
    assert_eq!(threads(&daemon, "storage-"), 0);
    granted(&mut other, "first");
    assert_eq!(threads(&daemon, "storage-"), 1);
    let locked = locked_mark(daemon.directory());
    let mut clients: Vec<V1> = (0..CLIENTS).map(|_| V1::connect(&daemon.tcp())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        for request in 0..REQUESTS {
            client.send(&fenced(&format!("f{number}-{request}")));
        }
    }
    // If these were waited for one after the other, that would take a minute.
    let begun = Instant::now();
    for round in 0..100 {
        other.ping();
        other.acquire(&format!("plain{round}"));
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for client in &mut clients {
        for _ in 0..REQUESTS {
            assert!(refused(&client.receive()).contains(".distrilock/fence"));
        }
    }
    drop(locked);
    granted(&mut clients[0], "f0-0");
    assert!(threads(&daemon, "storage-") <= 32, "their number is bounded");
}

/// The daemon is stopped, and handed over, while requests wait for a fence: each is answered, no
/// file stays, and sessions go on.
#[test]
fn the_daemon_ends_while_fences_wait() {
    const REQUESTS: usize = 40;
    let mut daemon = setup().start();
    let mut client = V1::connect(&daemon.tcp());
    granted(&mut client, "first");
    let locked = locked_mark(daemon.directory());
    (0..REQUESTS).for_each(|request| client.send(&fenced(&format!("f{request}"))));
    client.ping();
    assert!(daemon.terminate().success());
    assert_eq!(files(daemon.directory()), <[String; 0]>::default());
    drop(locked);

    let mut manager = Manager::start();
    let mut client = V1::connect(&manager.address());
    granted(&mut client, "first");
    let locked = locked_mark(&manager.locks());
    (0..REQUESTS).for_each(|request| client.send(&fenced(&format!("f{request}"))));
    client.ping();
    manager.leave();
    manager.run("");
    for _ in 0..REQUESTS {
        refused(&client.receive());
    }
    drop(locked);
    let reply = client.request(json!({"op": "verify", "lock": "first"}));
    assert!(reply["ok"] == true && reply["fence"] == 1, "{reply}");
    granted(&mut client, "f0");
    client.release("f0");
    client.release("first");
    eventually("no lock file is left", || files(&manager.locks()).is_empty());
    manager.stop();
}

/// What keeps a fence from being taken.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Another process keeps the mark locked.
    Locked,
    /// Something else stands in its place.
    Directory,
    /// There is no descriptor to open it.
    Descriptors,
    /// Nothing can be written (EFBIG, as on a full disk).
    NoRoom,
}

/// Limits the daemon's descriptors, so that it can open one more file.
fn one_descriptor(daemon: &Daemon) {
    let entries = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it lives");
    let used: Vec<u32> =
        entries.filter_map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse().ok()).collect();
    let free = (0..).find(|number| !used.contains(number)).expect("there are numbers");
    let limit = format!("--nofile={}:", free + 1);
    let status = Command::new("prlimit").arg(limit).args(["--pid", &daemon.pid().to_string()]).status();
    assert!(status.expect("prlimit runs").success());
}

/// A fence cannot be taken, for whichever reason and in whichever mode: the request is refused with
/// the reason, and after the linger its lock file is gone.
#[test]
fn no_lock_file_is_left_without_its_fence() {
    for trouble in [Trouble::Locked, Trouble::Directory, Trouble::Descriptors, Trouble::NoRoom] {
        for linger in ["0", "0.2"] {
            let mut setup = setup().flag("--linger", linger);
            if let Trouble::NoRoom = trouble {
                setup = setup.script("trap '' XFSZ").script("ulimit -f 0");
            }
            let mut daemon = setup.start();
            let directory = daemon.directory().to_owned();
            let mut client = V1::connect(&daemon.tcp());
            let locked = match trouble {
                Trouble::Locked => {
                    granted(&mut client, "first");
                    client.release("first");
                    Some(locked_mark(&directory))
                }
                Trouble::Directory => {
                    fs::create_dir(mark(&directory)).expect("daemons have made their folder");
                    None
                }
                Trouble::Descriptors => {
                    // Its socket has been accepted, and nothing else is being opened or closed.
                    client.ping();
                    eventually("the collector has ended", || threads(&daemon, "collect") == 0);
                    one_descriptor(&daemon);
                    None
                }
                Trouble::NoRoom => None,
            };
            for more in [json!({}), json!({"mode": "shared"}), json!({"slots": 3, "take": 2})] {
                let mut request = fenced("f");
                request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
                let message = refused(&client.request(request));
                assert!(message.contains(".distrilock"), "{trouble:?}: {message}");
            }
            eventually(&format!("{trouble:?} {linger}: no lock file is left\n{}", daemon.said()), || {
                files(&directory).is_empty()
            });
            client.acquire("f");
            client.release("f");
            drop(locked);
            daemon.assert_alive();
        }
    }
}

/// Numbers at the edge, in the mark or in a lock file: the fence is refused and says why, nothing
/// wraps, the daemon goes on, and locks without fences are granted.
#[test]
fn numbers_at_the_edge() {
    for number in [u64::MAX, u64::MAX - 1, u64::MAX - 63] {
        let mut daemon = setup().start();
        let mut client = V1::connect(&daemon.tcp());
        fs::write(mark(daemon.directory()), text(number)).expect("daemons have made their folder");
        let message = refused(&client.request(fenced("x")));
        assert!(message.contains(".distrilock/fence") && message.contains("restore"), "{message}");
        client.acquire("x");
        daemon.assert_alive();

        let mut daemon = setup().start();
        let mut client = V1::connect(&daemon.tcp());
        granted(&mut client, "first");
        fs::write(daemon.file("x"), text(number)).expect("the lock directory can be written");
        let message = refused(&client.request(fenced("x")));
        assert!(message.contains("x.lck") && message.contains("move it away"), "{message}");
        assert_eq!(fs::read_to_string(daemon.file("x")).expect("it is there"), text(number));
        client.acquire("x");
        assert_eq!(granted(&mut client, "y"), 2, "a forged number raises nobody else's");
        daemon.assert_alive();
    }
}

/// The mark is deleted while a daemon runs, and again before another one starts: no fence begins
/// anew. Put back, all goes on, above all that was granted.
#[test]
fn a_deleted_mark_is_missed() {
    let directory = tempfile::TempDir::new().expect("a lock directory");
    let start = || setup().directory(directory.path()).flag("--linger", "0").start();
    let mut daemon = start();
    let mut client = V1::connect(&daemon.tcp());
    for fence in 1..10 {
        assert_eq!(granted(&mut client, "ledger"), fence);
        client.release("ledger");
    }
    let kept = fs::read(mark(directory.path())).expect("it is there");
    fs::remove_file(mark(directory.path())).expect("it is there");
    let missed = |client: &mut V1| {
        let message = refused(&client.request(fenced("ledger")));
        assert!(message.contains(".distrilock/fence") && message.contains("restore"), "{message}");
        assert!(!mark(directory.path()).exists(), "no new one is made");
    };
    missed(&mut client);
    assert!(client.gets("ledger"), "without a fence it is granted");
    client.release("ledger");
    assert!(daemon.log().iter().any(|line| line.contains(".distrilock/fence")), "{}", daemon.said());
    assert!(daemon.terminate().success());
    let daemon = start();
    let mut client = V1::connect(&daemon.tcp());
    missed(&mut client);
    fs::write(mark(directory.path()), kept).expect("the folder is there");
    assert!(granted(&mut client, "ledger") >= 10);
}

/// A lock file that has a fence is evidence: while the mark is missing, it is not collected at
/// start.
#[test]
fn evidence_is_not_collected() {
    let directory = tempfile::TempDir::new().expect("a lock directory");
    let start = || setup().directory(directory.path()).start();
    fs::write(directory.path().join("left.lck"), text(41)).expect("it can be written");
    fs::write(directory.path().join("empty.lck"), "").expect("it can be written");
    let mut daemon = start();
    eventually("what says nothing is collected", || !daemon.file("empty").exists());
    let mut client = V1::connect(&daemon.tcp());
    let message = refused(&client.request(fenced("new")));
    assert!(message.contains("left.lck"), "{message}");
    drop(client);
    assert!(daemon.terminate().success());
    fs::write(mark(directory.path()), text(105)).expect("daemons have made their folder");
    let daemon = start();
    eventually("with a mark it is not needed", || !daemon.file("left").exists());
    assert_eq!(granted(&mut V1::connect(&daemon.tcp()), "new"), 106);
}

/// Under the units' directory mode and umask, nobody but the daemon's user can read or write
/// anything in the lock directory, whatever group the clients are in.
#[test]
fn clients_cannot_touch_the_files() {
    let setting = |name: &str| {
        let value = SERVICE.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("the unit sets {name}")).to_owned()
    };
    let directory = tempfile::TempDir::new().expect("a lock directory");
    let mode = u32::from_str_radix(&setting("StateDirectoryMode="), 8).expect("a mode");
    fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("it is ours");
    let umask = format!("umask {}", setting("UMask="));
    let daemon = setup().directory(directory.path()).script(&umask).start();
    let mut client = V1::connect(&daemon.tcp());
    granted(&mut client, "ledger");
    let folder = directory.path().join(".distrilock");
    let mut paths = vec![directory.path().to_owned(), folder.clone(), daemon.file("ledger")];
    let entries = fs::read_dir(folder).expect("the daemon made it");
    paths.extend(entries.map(|entry| entry.expect("an entry").path()));
    assert!(paths.len() >= 6, "the mark, its note and a socket: {paths:?}");
    for path in paths {
        let mode = fs::symlink_metadata(&path).expect("it is there").mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}
