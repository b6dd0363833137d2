//! Wake-ups between the daemons of one directory make waiting short and cheap. Whatever happens to
//! them, the locks on the files decide.

mod support;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc::F_WRLCK;
use serde_json::{Value, json};
use support::{Daemon, Dice, Setup, V1, eventually, lock_file};

/// Sets up another daemon on a directory; it logs the wake-ups that it gets.
fn beside(directory: &Path) -> Setup {
    Daemon::setup().directory(directory).flag("--log", "trace")
}

/// Two daemons on one directory: one holds, one waits.
fn two() -> (Daemon, Daemon) {
    let holding = Daemon::setup().flag("--log", "trace").start();
    let waiting = beside(holding.directory()).start();
    (holding, waiting)
}

/// The sockets of the daemons on a directory.
fn sockets(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join(".distrilock")).expect("the daemons have their folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    // A daemon that holds a lock for long has a board there, too.
    paths.filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("board-"))).collect()
}

/// How many lines of a daemon's log contain this.
fn said(daemon: &Daemon, text: &str) -> usize {
    daemon.log().iter().filter(|line| line.contains(text)).count()
}

/// Requests a lock and waits as long as it takes.
#[track_caller]
fn wait_for(client: &mut V1, lock: &str, mode: &str) {
    client.send(&json!({"id": lock, "op": "acquire", "lock": lock, "mode": mode, "wait_ms": null}));
    client.ping();
}

#[track_caller]
fn granted(client: &mut V1, lock: &str) {
    let reply = client.receive();
    assert_eq!((&reply["id"], &reply["ok"]), (&Value::from(lock), &Value::from(true)), "{reply}");
}

/// A lock goes back and forth between two daemons. Each time the waiter's daemon was promised a
/// wake-up, so that its next try would be seconds away, and each time the wake-up came.
#[test]
fn word_comes_with_the_release() {
    let (one, two) = two();
    let daemons = [&one, &two];
    let mut clients = daemons.map(|daemon| V1::connect(&daemon.tcp()));
    clients[0].acquire("word");
    for round in 0..20 {
        let (holder, waiter) = (round % 2, (round + 1) % 2);
        let promised = said(daemons[waiter], "promised a wake-up for word");
        let heard = said(daemons[waiter], "word that word is free");
        wait_for(&mut clients[waiter], "word", "exclusive");
        eventually("a wake-up is promised", || said(daemons[waiter], "promised a wake-up for word") > promised);
        clients[holder].release("word");
        granted(&mut clients[waiter], "word");
        eventually("word came", || said(daemons[waiter], "word that word is free") > heard);
    }
}

/// A writer's lock passes to a reader of its own daemon: a reader of the other daemon is woken and
/// joins.
#[test]
fn word_comes_when_readers_may_join() {
    let (one, two) = two();
    let mut clients = [&one, &one, &two].map(|daemon| V1::connect(&daemon.tcp()));
    clients[0].acquire("readers");
    wait_for(&mut clients[1], "readers", "shared");
    wait_for(&mut clients[2], "readers", "shared");
    eventually("a wake-up is promised", || said(&two, "promised a wake-up for readers") > 0);
    clients[0].release("readers");
    granted(&mut clients[1], "readers");
    granted(&mut clients[2], "readers");
    eventually("word came", || said(&two, "word that readers is free") > 0);
}

/// The daemon that promised a wake-up is killed: the end of its connection is wake-up enough. The
/// next one cleans up after it, and sends wake-ups as well.
#[test]
fn the_holding_daemon_is_killed() {
    let (mut one, two) = two();
    let mut waiter = V1::connect(&two.tcp());
    let mut holder = V1::connect(&one.tcp());
    for lock in ["killed", "another"] {
        holder.acquire(lock);
        wait_for(&mut waiter, lock, "exclusive");
        eventually("a wake-up is promised", || said(&two, &format!("promised a wake-up for {lock}")) > 0);
    }
    assert_eq!(sockets(two.directory()).len(), 2);
    one.kill();
    let mut replies = [waiter.receive(), waiter.receive()].map(|reply| reply["lock"].clone());
    replies.sort_by_key(Value::to_string);
    assert_eq!(replies, ["another", "killed"]);

    let next = beside(two.directory()).start();
    let left = format!("{}-", one.pid());
    let of_killed = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&left));
    eventually("its socket is removed", || !sockets(two.directory()).iter().any(of_killed));
    waiter.release("killed");
    let mut holder = V1::connect(&next.tcp());
    holder.acquire("killed");
    let promised = said(&two, "promised a wake-up for killed");
    wait_for(&mut waiter, "killed", "exclusive");
    eventually("a wake-up is promised", || said(&two, "promised a wake-up for killed") > promised);
    holder.release("killed");
    granted(&mut waiter, "killed");
}

/// The holding daemon stops with many locks, each of which has a waiter elsewhere: all of these get
/// their locks, and the daemon's socket is gone.
#[test]
fn the_holding_daemon_stops() {
    const LOCKS: usize = 1000;
    let (mut one, two) = two();
    let mut holder = V1::connect(&one.tcp());
    let mut waiter = V1::connect(&two.tcp());
    let lock = |number: usize| format!("many-{number}");
    for number in 0..LOCKS {
        holder.acquire(&lock(number));
    }
    for number in 0..LOCKS {
        let lock = lock(number);
        waiter.send(&json!({"id": lock, "op": "acquire", "lock": lock, "wait_ms": null}));
    }
    waiter.ping();
    eventually("a wake-up for each is promised", || {
        let lines = two.log();
        let promised: HashSet<&str> =
            lines.iter().filter_map(|line| line.split_once("promised a wake-up for ")).map(|(_, lock)| lock).collect();
        promised.len() == LOCKS
    });
    assert!(one.terminate().success());
    for _ in 0..LOCKS {
        assert_eq!(waiter.receive()["ok"], true);
    }
    assert_eq!(sockets(two.directory()).len(), 1);
}

/// A program other than a daemon closes the files that it has locked, and the waiters are served
/// because of that. The many files that it keeps locked make tries rare.
#[test]
fn a_program_closes_its_files() {
    let daemon = Daemon::setup().flag("--log", "trace").start();
    let mut waiter = V1::connect(&daemon.tcp());
    let lock = |number: usize| format!("many-{number}");
    let hold = |number: usize| {
        let file = File::create(daemon.file(&lock(number))).expect("a lock file");
        assert!(lock_file(&file, F_WRLCK), "nobody else has it");
        file
    };
    let mut files: Vec<File> = (0..500).map(hold).collect();
    for number in 0..files.len() {
        wait_for(&mut waiter, &lock(number), "exclusive");
    }
    eventually("closings are watched", || said(&daemon, "closed lock files are watched") > 0);
    while let Some(file) = files.pop() {
        drop(file);
        granted(&mut waiter, &lock(files.len()));
    }
    let heard = said(&daemon, "was closed");
    assert!(heard > 400, "{heard}");
}

/// The holder's socket is removed by hand, or a file is in the place of the sockets' folder: the
/// lock still changes hands.
#[test]
fn without_word() {
    let one = Daemon::start();
    for socket in sockets(one.directory()) {
        fs::remove_file(socket).expect("it is there");
    }
    let two = beside(one.directory()).start();
    hands_over(&one, &two);
    assert_eq!(said(&two, "promised"), 0);

    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join(".distrilock"), "").expect("a file");
    let (one, two) = (beside(directory.path()).start(), beside(directory.path()).start());
    hands_over(&one, &two);
    assert_eq!(said(&two, "cannot receive wake-ups from other daemons"), 1, "{}", two.said());
}

#[track_caller]
fn hands_over(one: &Daemon, two: &Daemon) {
    let mut holder = V1::connect(&one.tcp());
    holder.acquire("over");
    let mut waiter = V1::connect(&two.tcp());
    wait_for(&mut waiter, "over", "exclusive");
    holder.release("over");
    granted(&mut waiter, "over");
}

/// Forged messages: names that are waited for, held, unknown or invalid, and bytes that are no
/// message.
fn forgeries(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..500 {
        match dice.below(8) {
            0 => bytes.extend(format!("want unknown-{}\n", dice.below(1000)).bytes()),
            1 => bytes.extend(b"held forged\n"),
            2 => bytes.extend(b"want forged\n"),
            3 => {
                let count = usize::try_from(dice.below(100)).expect("it is small");
                bytes.extend(dice.bytes(count));
            }
            4 => bytes.extend(b"free ../forged\nfree\nforge forged\n\n"),
            _ => bytes.extend(b"free forged\n"),
        }
    }
    bytes
}

/// Somebody floods both daemons with forged messages, at their sockets and from a socket of his
/// own: the holder keeps its lock until it releases it, the waiter gets it then, and both daemons
/// become idle.
#[test]
fn forged_words() {
    let one = Daemon::start();
    let forged = one.directory().join(".distrilock").join("forged.sock");
    let forger = UnixListener::bind(&forged).expect("a socket of our own");
    let mut two = Daemon::setup().directory(one.directory()).start();
    let mut holder = V1::connect(&one.tcp());
    holder.acquire("forged");
    let mut waiter = V1::connect(&two.tcp());
    wait_for(&mut waiter, "forged", "exclusive");

    let mut dice = Dice::new(1);
    for _ in 0..5 {
        // The waiting daemon asks the forger as well, and is cut off each time.
        let (mut asking, _) = forger.accept().expect("the daemon connects");
        let ours = sockets(one.directory()).into_iter().filter(|socket| *socket != forged);
        let connections = ours.map(|socket| UnixStream::connect(socket).expect("a daemon listens"));
        for mut connection in connections.collect::<Vec<_>>() {
            // The daemon closes the connection when it has had enough.
            let _ = connection.write_all(&forgeries(&mut dice));
            let _ = connection.write_all(&[b'x'; 4096]);
        }
        let _ = asking.write_all(&forgeries(&mut dice));
        drop(asking);
        assert_eq!(holder.request(json!({"op": "verify", "lock": "forged"}))["ok"], true);
        waiter.ping();
    }
    // This peer does not cut the daemon off, sends only nonsense, and does not read.
    let (mut asking, _) = forger.accept().expect("the daemon connects");
    asking.set_nonblocking(true).expect("it can be set");
    while asking.write(b"free forged\nfree forged\n").is_ok() {}
    waiter.ping();
    fs::remove_file(&forged).expect("it is ours");
    drop((forger, asking));
    assert!(!V1::connect(&two.tcp()).gets("forged"));

    holder.release("forged");
    granted(&mut waiter, "forged");
    assert!(!holder.gets("forged"));
    one.becomes_idle();
    two.becomes_idle();
    two.assert_alive();
}

/// A peer that never reads asks a daemon for more than it can promise: the daemon forgets it and
/// continues.
#[test]
fn more_questions_than_promises() {
    let (one, two) = two();
    let own = sockets(one.directory());
    let mut holder = V1::connect(&one.tcp());
    holder.acquire("asked");
    let mut waiter = V1::connect(&two.tcp());
    wait_for(&mut waiter, "asked", "exclusive");
    eventually("a wake-up is promised", || said(&two, "promised a wake-up for asked") > 0);
    let mut askers: Vec<_> = own.iter().map(|socket| UnixStream::connect(socket).expect("it listens")).collect();
    for asker in &mut askers {
        for number in 0..5000 {
            asker.write_all(format!("want {number:0200}\nwant asked\n").as_bytes()).expect("the daemon reads");
        }
    }
    holder.release("asked");
    granted(&mut waiter, "asked");
    one.becomes_idle();
}
