//! The clients of docs/protocol.md, chapter 9, exactly as printed there: each against the real
//! daemon, and against one that says that the lock is lost, or falls silent.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use distrilock_client::Server;
use distrilock_testing::play;
use nix::sys::signal::Signal;
use serde_json::json;
use support::{Daemon, PATIENCE, V1, client_of_the_manual, eventually};

/// A running client, and what it prints line by line.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command, needs: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: this test needs {needs}"));
        let (to, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        thread::spawn(move || output.lines().map_while(Result::ok).all(|line| to.send(line).is_ok()));
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    #[track_caller]
    fn says(&mut self, expected: &str) {
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it does not say {expected:?}"));
        assert!(line.contains(expected), "expected {expected:?}, it says {line:?}");
    }

    /// Lets the work, which waits for a line, end.
    fn go_on(&mut self) {
        let mut input = self.input.take().expect("it is used once");
        input.write_all(b"go on\n").expect("it reads");
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the client ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The three clients. Each acquires the lock `a`, says `held`, and continues when it reads a line.
const CLIENTS: [fn(&Path, &Places) -> Running; 3] = [python, shell, javascript];

/// Where a daemon listens.
struct Places {
    tcp: String,
    ws: String,
}

/// The command of the first two. It has a child, which must not survive it either.
const WORK: [&str; 3] = ["sh", "-c", "echo held; read line; echo released"];

fn with_lock(interpreter: &str, language: &str, folder: &Path, places: &Places) -> Running {
    let program = folder.join("with-lock");
    fs::write(&program, client_of_the_manual(language)).expect("a program");
    let (host, port) = places.tcp.rsplit_once(':').expect("HOST:PORT");
    let mut command = Command::new(interpreter);
    Running::start(command.arg(program).args([host, port, "a"]).args(WORK), interpreter)
}

fn python(folder: &Path, places: &Places) -> Running {
    with_lock("python3", "python", folder, places)
}

fn shell(folder: &Path, places: &Places) -> Running {
    with_lock("bash", "bash", folder, places)
}

/// The page's client in node, which has the WebSocket of browsers from version 22 on, before that
/// behind a flag or in a package.
fn javascript(folder: &Path, places: &Places) -> Running {
    const MAIN: &str = r#"
        const session = new Session(process.argv[2]);
        session.acquire("a").then(async ({ lost, release }) => {
          console.log("held");
          lost.then((reason) => (console.log("lost: " + reason), process.exit(70)));
          await new Promise((resolve) => process.stdin.once("data", resolve));
          await release();
          console.log("released");
          process.exit(0);
        }, (error) => (console.log("refused: " + error.message), process.exit(69)));
    "#;
    let program = folder.join("page.mjs");
    fs::write(&program, client_of_the_manual("js") + MAIN).expect("a program");
    let needs = "node with the WebSocket of browsers: nodejs 20.10 or newer, or an older one and Debian's node-ws";
    let preload = folder.join("websocket.cjs");
    fs::write(&preload, r#"globalThis.WebSocket = require("/usr/share/nodejs/ws")"#).expect("a program");
    let preload = preload.to_str().expect("the path is text");
    let has = |flags: &[&str]| {
        let probe =
            Command::new("node").args(flags).args(["-e", "process.exit(globalThis.WebSocket ? 0 : 1)"]).output();
        probe.unwrap_or_else(|error| panic!("node: {error}: this test needs {needs}")).status.success()
    };
    let ways: [&[&str]; 3] = [&[], &["--experimental-websocket"], &["--require", preload]];
    let flags = ways.into_iter().find(|flags| has(flags)).unwrap_or_else(|| panic!("this test needs {needs}"));
    let url = format!("ws://{}/distrilock", places.ws);
    Running::start(Command::new("node").args(flags).arg(program).arg(url), needs)
}

fn places(daemon: &Daemon) -> Places {
    Places { tcp: daemon.tcp(), ws: daemon.ws() }
}

/// A client waits while somebody else holds the lock, holds it while it works, and releases it.
#[test]
fn each_waits_works_and_releases() {
    let daemon = Daemon::start();
    let places = places(&daemon);
    for client in CLIENTS {
        let folder = tempfile::tempdir().expect("a folder");
        let mut other = V1::connect(&daemon.tcp());
        assert_eq!(other.request(json!({"op":"acquire","lock":"a"}))["ok"], true);
        let mut running = client(folder.path(), &places);
        eventually("the client waits", || other.request(json!({"op":"peek","lock":"a"}))["waiters"] == 1);
        assert!(running.lines.try_recv().is_err(), "it works without the lock");
        other.request(json!({"op":"release","lock":"a"}));
        running.says("held");
        assert_eq!(other.request(json!({"op":"acquire","lock":"a"}))["error"], "busy");
        running.go_on();
        running.says("released");
        assert!(running.end().success());
        assert_eq!(other.request(json!({"op":"acquire","lock":"a","wait_ms":30000}))["ok"], true);
    }
}

/// A client waits for longer than the time between its heartbeats, and works for as long: their
/// replies do not confuse it.
#[test]
fn each_lives_through_its_heartbeats() {
    let daemon = Daemon::start();
    let places = places(&daemon);
    let folders: Vec<_> = CLIENTS.iter().map(|_| tempfile::tempdir().expect("a folder")).collect();
    // They get the lock one after another. The last one has waited through the work of the others.
    let mut clients: Vec<_> =
        CLIENTS.iter().zip(&folders).map(|(client, folder)| client(folder.path(), &places)).collect();
    let mut watch = V1::connect(&daemon.tcp());
    while !clients.is_empty() {
        let mut holder = None;
        eventually("the next one holds the lock", || {
            holder = clients.iter().position(|client| client.lines.try_recv().is_ok_and(|line| line == "held"));
            holder.is_some()
        });
        let mut holder = clients.swap_remove(holder.expect("somebody"));
        // Long enough for the first heartbeat and its answer.
        eventually("it has held for seven seconds", || {
            let peeked = watch.request(json!({"op":"peek","lock":"a"}));
            peeked["holders"][0]["since_ms"].as_u64().is_some_and(|age_ms| age_ms > 7000)
        });
        holder.go_on();
        holder.says("released");
        assert!(holder.end().success());
    }
}

/// The daemon is killed: the work stops.
#[test]
fn each_stops_when_the_daemon_dies() {
    for client in CLIENTS {
        let mut daemon = Daemon::start();
        let folder = tempfile::tempdir().expect("a folder");
        let mut running = client(folder.path(), &places(&daemon));
        running.says("held");
        daemon.kill();
        assert!(!running.end().success());
        assert!(!running.lines.iter().any(|line| line == "released"), "the work went on");
    }
}

/// The daemon says that the lock is lost, or closes while the client waits: the work stops, or does
/// not begin.
#[test]
fn each_obeys_the_event() {
    for client in [python, shell] {
        let folder = tempfile::tempdir().expect("a folder");
        let (server, script) = play(|mut peer| {
            let request = peer.expect("acquire");
            peer.yes(&request, &json!({"lock":"a"}));
            // The client is to be at work by then: the answer to its ping comes first.
            let ping = peer.request();
            if let Some(ping) = ping {
                peer.yes(&ping, &json!({}));
            }
            peer.send(&json!({"event":"lost","lock":"a","reason":"the moon"}));
            peer.rest()
        });
        let Server::Tcp(tcp) = server else { panic!("the script is on TCP") };
        let mut running = client(folder.path(), &Places { tcp, ws: String::new() });
        running.says("held");
        assert!(!running.end().success());
        assert!(!running.lines.iter().any(|line| line == "released"), "the work went on");
        drop(running);
        script.join().expect("the script");

        let (server, script) = play(|mut peer| drop(peer.expect("acquire")));
        let Server::Tcp(tcp) = server else { panic!("the script is on TCP") };
        let mut running = client(folder.path(), &Places { tcp, ws: String::new() });
        assert!(!running.end().success());
        assert_eq!(running.lines.iter().count(), 0, "it worked without the lock");
        script.join().expect("the script");
    }
}

/// The daemon is stopped and falls silent: each client stops its work by its own clock, before 45 s
/// have passed.
#[test]
fn each_stops_by_its_own_clock() {
    let stopping = CLIENTS.map(|client| {
        let (daemon, folder) = (Daemon::start(), tempfile::tempdir().expect("a folder"));
        let mut running = client(folder.path(), &places(&daemon));
        running.says("held");
        daemon.signal(Signal::SIGSTOP);
        (Instant::now(), running, daemon, folder)
    });
    for (start, mut running, _daemon, _folder) in stopping {
        while running.child.try_wait().expect("our child").is_none() {
            assert!(start.elapsed().as_secs() < 45, "it still works when the daemon gives it up");
            thread::sleep(Duration::from_millis(50));
        }
        assert!(start.elapsed().as_secs() > 9, "it gave up too early");
    }
}
