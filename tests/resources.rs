//! Resources run out: descriptors, inodes, the size of files, and the patience of a journal. What
//! a stranger uses up costs those who hold locks nothing, and each error is told for what it is.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use manager::Manager;
use nix::unistd::Uid;
use serde_json::{Value, json};
use support::{Daemon, Dice, V1, connect, eventually, files};
use tempfile::TempDir;

const ALARM: &str = "was deleted while it was held";

/// How many lines of a daemon's log say this.
fn said(daemon: &Daemon, text: &str) -> usize {
    daemon.log().iter().filter(|line| line.contains(text)).count()
}

/// More idle connections than there are descriptors.
fn crowd(address: &str) -> Vec<TcpStream> {
    (0..300).map(|_| connect(address)).collect()
}

/// How a program is run that may mount something which nobody else sees.
fn unshare() -> &'static str {
    if Uid::effective().is_root() { "unshare --mount" } else { "unshare --mount --map-root-user" }
}

fn acquired(client: &mut V1, lock: &str) -> Value {
    client.request(json!({"op": "acquire", "lock": lock}))
}

/// Something is mounted somewhere while idle connections use the descriptors up: the daemon, which
/// looks at the table of mounts then, goes on, and knows that its lock directory is what it was.
#[test]
fn a_mount_without_descriptors() {
    let script = format!("ulimit -n 64\nexec {} \"$0\" \"$@\"", unshare());
    let mut daemon = Daemon::setup().script(&script).start();
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("precious");
    let _crowd = crowd(&daemon.tcp());
    eventually("the log speaks of descriptors", || said(&daemon, "out of file descriptors") > 0);
    let place = TempDir::new().expect("a place");
    let before = switches(&daemon, "mount-watch");
    let mut mount = Command::new("nsenter");
    mount.args(["--target", &daemon.pid().to_string(), "--mount"]);
    if !Uid::effective().is_root() {
        mount.args(["--user", "--preserve-credentials"]);
    }
    let mounted = mount.args(["mount", "-t", "tmpfs", "none"]).arg(place.path()).status().expect("nsenter runs");
    assert!(mounted.success(), "something is mounted");
    eventually("the daemon looks", || switches(&daemon, "mount-watch") > before);
    daemon.assert_alive();
    let reply = holder.request(json!({"op": "verify", "lock": "precious"}));
    assert_eq!(reply["ok"], true, "{reply}");
}

/// How often a thread of the daemon has waited (proc_pid_status(5)).
fn switches(daemon: &Daemon, thread: &str) -> u64 {
    let tasks = format!("/proc/{}/task", daemon.pid());
    for task in fs::read_dir(tasks).expect("the daemon lives").flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("Name:") == Some(thread) {
            return field("voluntary_ctxt_switches:").and_then(|count| count.parse().ok()).expect("a count");
        }
    }
    panic!("no thread {thread}")
}

/// Idle connections of a stranger do not keep a session that lives from taking locks, and are
/// served once there is room.
#[test]
fn a_reserve_for_lock_files() {
    let daemon = Daemon::setup().script("ulimit -n 128").start();
    let mut holder = V1::connect(&daemon.tcp());
    let crowd = crowd(&daemon.tcp());
    eventually("the log speaks of descriptors", || said(&daemon, "kept for lock files") > 0);
    for number in 0..10 {
        let reply = acquired(&mut holder, &format!("n{number}"));
        assert_eq!(reply["ok"], true, "lock {number}: {reply}");
    }
    drop(crowd);
    V1::connect(&daemon.tcp()).acquire("later");
    assert_eq!(said(&daemon, "out of file descriptors"), 1, "{}", daemon.said());
}

/// Released lock files have all descriptors that connections left: they give way to a fence and to
/// a stamp as well, which need some for their own files.
#[test]
fn released_files_give_way_to_fences_and_stamps() {
    let daemon = Daemon::setup().script("ulimit -n 128").flag("--linger", "600").start();
    let mut client = V1::connect(&daemon.tcp());
    let _crowd = crowd(&daemon.tcp());
    eventually("the log speaks of descriptors", || said(&daemon, "kept for lock files") > 0);
    let fenced = json!({"op": "acquire", "lock": "one", "fence": true});
    let slots = json!({"op": "acquire", "lock": "some", "fence": true, "slots": 4, "take": 2});
    for (request, member) in
        [(fenced, "fence"), (slots, "fence"), (json!({"op": "stamp", "lock": "one", "age_ms": 7}), "age_ms")]
    {
        for number in 0..40 {
            let lock = format!("n{number}");
            client.acquire(&lock);
            client.release(&lock);
        }
        let reply = client.request(request);
        assert!(reply["ok"] == true && reply[member].is_u64(), "{reply}");
        assert_eq!(client.request(json!({"op": "verify", "lock": reply["lock"]}))["ok"], true);
    }
}

/// With too few descriptors to start, the daemon says so, however few they are. With enough for a
/// session it serves.
#[test]
fn a_start_with_few_descriptors() {
    for count in [5, 6, 7, 9, 12, 15, 18, 21] {
        let said = Daemon::setup().script(&format!("ulimit -n {count}")).start_refused();
        assert!(said.contains("more files open") && said.contains("LimitNOFILE="), "{count}: {said}");
    }
    let daemon = Daemon::setup().script("ulimit -n 32").start();
    V1::connect(&daemon.tcp()).acquire("x");
}

/// A restart while idle connections use the descriptors up: the manager learns that the next
/// process is ready, and a lock stays held.
#[test]
fn a_restart_without_descriptors() {
    const FEW: &str = "ulimit -n 128";
    let mut manager = Manager::start();
    manager.leave();
    manager.run(FEW);
    let mut holder = V1::connect(&manager.address());
    holder.acquire("precious");
    let _crowd = crowd(&manager.address());
    // The daemon accepts them in their order, and hands over between two of them at the latest.
    holder.ping();
    for _ in 0..2 {
        manager.leave();
        manager.run(FEW);
        let reply = holder.request(json!({"op": "verify", "lock": "precious"}));
        assert_eq!(reply["ok"], true, "{reply}");
    }
    manager.stop();
}

/// The next process cannot start for lack of descriptors: the sessions wait for the one after it.
#[test]
fn a_restart_that_fails_for_lack_of_descriptors() {
    let mut manager = Manager::start();
    let mut holder = V1::connect(&manager.address());
    holder.acquire("precious");
    manager.leave();
    for count in [10, 16, 22] {
        let status = manager.spawn(&format!("ulimit -n {count}")).wait().expect("it is our child");
        assert_eq!(status.code(), Some(1), "{count}: {status}");
    }
    manager.run("");
    let reply = holder.request(json!({"op": "verify", "lock": "precious"}));
    assert_eq!(reply["ok"], true, "{reply}");
    manager.stop();
}

/// The file system has no inodes left but for files of released locks: these give way.
#[test]
fn released_files_give_way_where_the_file_system_is_full() {
    let directory = TempDir::new().expect("a lock directory");
    let place = directory.path().display();
    let mount = format!("mount -t tmpfs -o nr_inodes=20,mode=0777 none '{place}' && exec \"$0\" \"$@\"");
    let script = format!("exec {} sh -c {} \"$0\" \"$@\"", unshare(), quoted(&mount));
    let daemon = Daemon::setup().directory(directory.path()).script(&script).flag("--linger", "600").start();
    let mut client = V1::connect(&daemon.tcp());
    for number in 0..100 {
        let lock = format!("n{number}");
        client.acquire(&lock);
        client.release(&lock);
    }
    let refused = (0..100).map(|number| acquired(&mut client, &format!("held{number}"))).find(|it| it["ok"] == false);
    let refused = refused.expect("there are fewer inodes than that");
    assert_eq!(refused["error"], "storage", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|it| it.contains("no space left")), "{refused}");
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// No file may grow (RLIMIT_FSIZE): a fence cannot be written, and that is a refusal which says so.
#[test]
fn a_limit_of_file_sizes() {
    let mut daemon = Daemon::setup().script("ulimit -f 0").start();
    let mut client = V1::connect(&daemon.tcp());
    let reply = client.request(json!({"op": "acquire", "lock": "fenced", "fence": true}));
    assert_eq!(reply["error"], "storage", "{reply}");
    assert!(reply["message"].as_str().is_some_and(|it| it.contains("file too large")), "{reply}");
    client.acquire("plain");
    daemon.assert_alive();
    eventually("the log has the remedy", || said(&daemon, "LimitFSIZE=") == 1);
}

/// Hundreds of clients break the protocol: the log has a few of each kind, and one kind does not
/// hide another.
#[test]
fn a_flood_of_violations_is_a_few_lines() {
    let daemon = Daemon::start();
    let violate = |bytes: &[u8]| {
        let mut client = V1::connect(&daemon.tcp());
        client.send_bytes(bytes);
        client.closed();
    };
    (0..300).for_each(|_| violate(b"x\n"));
    (0..3).for_each(|_| violate(&[b"{\"op\":\"hello\"}\n", &[b'x'; 70_000][..]].concat()));
    eventually("each kind is logged", || {
        said(&daemon, "a line that is no JSON object") >= 10 && said(&daemon, "a message of") == 3
    });
    assert_eq!(said(&daemon, " closed: "), 13, "{}", daemon.said());
}

/// Two daemons use the same names for some seconds, and delete each other's released files: nobody
/// is told that a file was deleted while it was held.
#[test]
fn no_false_alarm() {
    let one = Daemon::setup().flag("--linger", "0.05").start();
    let two = Daemon::setup().directory(one.directory()).flag("--linger", "0.02").start();
    let mut clients = [&one, &two].map(|daemon| V1::connect(&daemon.tcp()));
    let (mut dice, end) = (Dice::new(11), Instant::now() + Duration::from_secs(5));
    let mut granted = [0, 0];
    while Instant::now() < end {
        let (at, lock) = (usize::from(dice.below(2) == 1), format!("n{}", dice.below(40)));
        if clients[at].gets(&lock) {
            granted[at] += 1;
            clients[at].release(&lock);
        }
    }
    assert!(granted.iter().all(|count| *count > 100), "{granted:?}");
    eventually("all files are deleted", || files(one.directory()).is_empty());
    for daemon in [&one, &two] {
        assert_eq!(said(daemon, ALARM), 0, "{}", daemon.said());
    }
}

/// A held file is deleted, or replaced, by hand: the release says so, whether the file would linger
/// or go at once.
#[test]
fn an_alarm_where_it_is_true() {
    for linger in ["0", "2"] {
        let daemon = Daemon::setup().flag("--linger", linger).start();
        let mut client = V1::connect(&daemon.tcp());
        let replaced = |path: &Path| {
            fs::write(path.with_extension("new"), "").and_then(|()| fs::rename(path.with_extension("new"), path))
        };
        let deleted = |path: &Path| fs::remove_file(path);
        for (number, tamper) in [&deleted as &dyn Fn(&Path) -> std::io::Result<()>, &replaced].into_iter().enumerate() {
            let lock = format!("gone{number}");
            client.acquire(&lock);
            let since = Instant::now();
            tamper(&daemon.file(&lock)).expect("the lock file is there");
            // With a linger, only a lock that was held for a second is looked at.
            eventually("it was held for long", || since.elapsed() > Duration::from_millis(1100));
            client.release(&lock);
            eventually("the log has the alarm", || {
                daemon.log().iter().any(|line| line.contains(ALARM) && line.contains(&lock))
            });
        }
        assert_eq!(said(&daemon, ALARM), 2, "{}", daemon.said());
    }
}

/// A stranger fills the folder of the daemons with what is no socket of a daemon, and one link
/// leads to a socket elsewhere: nobody connects to that, and locks change hands as before.
#[test]
fn foreign_things_in_the_daemons_folder() {
    let one = Daemon::start();
    let outside = TempDir::new().expect("a place");
    let victim = std::os::unix::net::UnixListener::bind(outside.path().join("victim")).expect("a socket");
    victim.set_nonblocking(true).expect("it is a socket");
    let folder = one.directory().join(".distrilock");
    std::os::unix::fs::symlink(outside.path().join("victim"), folder.join("1-x.sock")).expect("a link");
    fs::create_dir(folder.join("2-x.sock")).expect("a directory");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("it is ours");
    let two = Daemon::setup().directory(one.directory()).flag("--log", "trace").start();
    let (mut holder, mut waiter) = (V1::connect(&one.tcp()), V1::connect(&two.tcp()));
    holder.acquire("over");
    waiter.send(&json!({"id": 1, "op": "acquire", "lock": "over", "wait_ms": null}));
    eventually("a wake-up is promised", || said(&two, "promised a wake-up for over") > 0);
    holder.release("over");
    let reply = waiter.receive();
    assert_eq!(reply["ok"], true, "{reply}");
    let refused = victim.accept().expect_err("nobody connects");
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
}
