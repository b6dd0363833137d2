//! `distrilock verify`: what a command learns about the lock that it runs under.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::thread;

use nix::unistd::{Pid, Uid};

use super::support::{DISTRILOCK, Daemon, Running, V1, command, ended, eventually};

/// `distrilock run` with a script that finds the command in `$D`.
fn run(server: &str, options: &[&str], script: &str) -> Command {
    let mut arguments = vec!["run"];
    arguments.extend(options);
    arguments.extend(["x,y", "-c", script]);
    let mut run = command(server, &arguments);
    run.env("D", DISTRILOCK).env("SHELL", "/bin/sh");
    run
}

/// A held lock is real, whichever of its names is given; another name is not held. If a command is
/// in two runs, the inner one counts.
#[test]
fn a_real_lock() {
    let daemon = Daemon::start();
    for server in [daemon.tcp(), format!("ws://{}", daemon.ws())] {
        let script = "for names in '' x y,x z x,z; do $D verify $names; echo $?; done; $D run z $D verify x; echo $?";
        let run = ended(run(&server, &[], script));
        assert_eq!((run.code(), run.out.as_str()), (0, "0\n0\n0\n1\n1\n1\n"), "{}", run.err);
        let lines: Vec<&str> = run.err.lines().collect();
        assert!(lines[0].contains("z is not held") && lines[0].contains("holds x,y"), "{}", run.err);
        assert!(lines[2].contains("x is not held") && lines[2].ends_with("holds z"), "{}", run.err);
    }
}

/// Without a lock there is nothing to verify.
#[test]
fn no_lock() {
    let outside = ended(command("", &["verify"]));
    assert_eq!(outside.code(), 1);
    assert!(outside.err.contains("does not run under distrilock run"), "{}", outside.err);
    let anyway = ended(run("unix:/nonexistent/socket", &["--run-anyway"], "$D verify; echo $?"));
    assert_eq!(anyway.out, "1\n", "{}", anyway.err);
    assert!(anyway.err.contains("without the lock"), "{}", anyway.err);
}

/// Somebody deletes the lock file: verify notices, and says so every time after that. The guard
/// learns about the loss as well.
#[test]
fn a_deleted_file() {
    let daemon = Daemon::start();
    let script = "$D verify && echo held; read line; for n in 1 2; do $D verify x; echo $?; done; $D verify; echo $?";
    let mut running = run(&daemon.tcp(), &["--on-lost", "warn"], script);
    let (input, writer) = std::io::pipe().expect("a pipe");
    let mut running = Running::start({
        running.stdin(input);
        running
    });
    running.says("held\n");
    fs::remove_file(daemon.file("x")).expect("it is held");
    drop(writer);
    let run = running.end();
    running.tree.goes();
    assert_eq!((run.code(), run.out.as_str()), (0, "held\n74\n74\n74\n"), "{}", run.err);
    let told = run.err.lines().filter(|line| line.contains(&daemon.tcp()) && line.contains("stop the work")).count();
    assert_eq!(told, 3, "{}", run.err);
}

/// If verify finds the lock lost, the guard ends the command, as after any other loss.
#[test]
fn a_loss_ends_the_command() {
    let daemon = Daemon::start();
    let script = "rm \"$FILE\"; $D verify; sleep 1000";
    let mut command = run(&daemon.tcp(), &[], script);
    command.env("FILE", daemon.file("y"));
    let run = ended(command);
    assert_eq!(run.code(), 74, "{}", run.err);
}

/// The daemon is killed: the lock is lost with it.
#[test]
fn the_daemon_is_gone() {
    let mut daemon = Daemon::start();
    let mut run = run(&daemon.tcp(), &["--on-lost", "warn"], "echo held; read line; $D verify; echo $?");
    let (input, writer) = std::io::pipe().expect("a pipe");
    run.stdin(input);
    let mut running = Running::start(run);
    running.says("held\n");
    daemon.kill();
    drop(writer);
    let run = running.end();
    assert_eq!(run.out, "held\n74\n", "{}", run.err);
    running.tree.goes();
}

/// Processes that a command left behind keep the lock after the command's end, and can verify it.
#[test]
fn in_the_background() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().expect("a folder");
    let (go, done) = (folder.path().join("go"), folder.path().join("done"));
    let script =
        "(until [ -e $GO ]; do sleep 0.05; done; $D verify; echo $? > $DONE.part; mv $DONE.part $DONE) & exit 0";
    let mut command = run(&daemon.tcp(), &[], script);
    command.env("GO", &go).env("DONE", &done);
    let mut running = Running::start(command);
    assert_eq!(running.end().code(), 0);
    fs::write(&go, "").expect("a file");
    eventually("the background has asked", || done.exists());
    assert_eq!(fs::read_to_string(&done).expect("it is there"), "0\n");
    running.tree.goes();
    eventually("the lock is free", || V1::connect(&daemon.tcp()).gets("x"));
}

/// The process that holds the lock is gone, belongs to somebody else, or releases the lock just
/// now: verify says so, and does not answer yes.
#[test]
fn nobody_to_ask() {
    let asked = |guard: &str| {
        let mut verify = command("", &["verify"]);
        verify.envs([("DISTRILOCK_HELD", "1"), ("DISTRILOCK_LOCK", "x"), ("DISTRILOCK_GUARD", guard)]);
        let run = ended(verify);
        assert_eq!(run.code(), 68, "{}", run.err);
        run.err
    };
    let name = |uid: u32| format!("distrilock-run/{uid}/{}-test", Pid::this());
    let own = name(Uid::effective().as_raw());
    let err = asked(&format!("@{own}"));
    assert!(err.contains(&own) && err.contains("cannot reach") && err.contains("stop the work"), "{err}");
    let listen = |name: &str| UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).expect("a name"));
    let others = name(Uid::effective().as_raw() + 1);
    let listener = listen(&others).expect("nobody else has it");
    let err = asked(&format!("@{others}"));
    assert!(err.contains("not the one that holds the lock"), "{err}");
    drop(listener);
    let listener = listen(&own).expect("nobody else has it");
    let accept = thread::spawn(move || drop(listener.accept().expect("it asks")));
    assert!(asked(&format!("@{own}")).contains("cannot reach"));
    accept.join().expect("no panic");
    assert!(asked("nonsense").contains("not the address of a guard"));
    assert!(asked("").contains("is not set"));
}

/// Under `-F`, commands ask over the connection itself, as the message and the manual say.
#[test]
fn without_a_guard() {
    let daemon = Daemon::start();
    let manual = include_str!("../../docs/distrilock.md");
    let lines = manual.lines().filter_map(|line| line.strip_prefix("    "));
    let lines: Vec<&str> = lines.filter(|line| line.contains("DISTRILOCK_FD")).collect();
    assert_eq!(lines.len(), 2, "the manual's lines are a question and an answer");
    let script = format!("$D verify; echo $?\n{}\necho \"$answer\"", lines.join("\n").replace("nightly", "x"));
    let mut command = run(&daemon.tcp(), &["-F"], &script);
    command.env("SHELL", "/bin/bash");
    let run = ended(command);
    assert_eq!(run.out, "68\n{\"ok\":true,\"lock\":\"x\"}\n", "{}", run.err);
    assert!(run.err.contains("DISTRILOCK_FD"), "{}", run.err);
}

/// The user who runs `distrilock run`, root, and whatever CMD starts may ask, as a user of its own
/// too (su(1)). Other users may not, even if they know the address: they are told so, and the
/// daemon is not asked. (Needs root, to be another user.)
#[test]
fn strangers_may_not_ask() {
    assert!(Uid::effective().is_root(), "the test needs processes of several users: run it as root");
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().expect("a folder");
    let binary = folder.path().join("distrilock");
    fs::copy(DISTRILOCK, &binary).expect("a copy that everybody can run");
    for path in [folder.path(), &binary] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
    let other_user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let script = format!(
        "setpriv {} \"$COPY\" verify; echo $?; $D verify; echo $?; echo $DISTRILOCK_GUARD; exec sleep 1001",
        other_user.join(" ")
    );
    let mut command = run(&daemon.tcp(), &[], &script);
    command.env("COPY", &binary);
    let mut running = Running::start(command);
    running.tree.waits_for("sleep 1001");
    let said = running.out();
    let lines: Vec<&str> = said.lines().collect();
    let [as_other, as_us, address] = lines[..] else { panic!("{said}") };
    assert_eq!((as_other, as_us), ("0", "0"));
    let asked = |words: &[&str]| {
        let mut ask = Command::new(words[0]);
        ask.args(&words[1..])
            .env("DISTRILOCK_GUARD", address)
            .env("DISTRILOCK_HELD", "1")
            .env("DISTRILOCK_LOCK", "x,y");
        ended(ask)
    };
    let copy = binary.to_str().expect("it is text");
    assert_eq!(asked(&[copy, "verify"]).code(), 0, "as root");
    let stranger = asked(&[&["setpriv"], &other_user[..], &[copy, "verify"]].concat());
    assert_eq!(stranger.code(), 77, "{}", stranger.err);
    assert!(stranger.err.contains("user 0, who started it"), "{}", stranger.err);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.end();
}

/// Many questions at once are all answered.
#[test]
fn many_questions() {
    let daemon = Daemon::start();
    let script = "for n in $(seq 40); do ($D verify && echo yes) & done; wait";
    let run = ended(run(&daemon.tcp(), &[], script));
    assert_eq!(run.out, "yes\n".repeat(40), "{}", run.err);
}
