//! `run` among strangers: programs that run as other users, and surroundings of containers and
//! sandboxes. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::support::{DISTRILOCK, Daemon, Running, V1, eventually, number_of};
use super::surroundings::children_of;

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Programs that another user may run, and a file for what a shell says.
struct Programs {
    folder: TempDir,
    distrilock: PathBuf,
}

impl Programs {
    #[track_caller]
    fn new() -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "the test needs processes of several users: run it as root");
        let folder = tempfile::tempdir().expect("a copy of a program can be made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a copy of a program can be made");
        let mut programs = Self { folder, distrilock: PathBuf::new() };
        programs.distrilock = programs.copy(DISTRILOCK, "distrilock", 0o755);
        programs
    }

    #[track_caller]
    fn copy(&self, program: &str, name: &str, mode: u32) -> PathBuf {
        let copy = self.folder.path().join(name);
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", program])
            .output()
            .expect("a copy of a program can be made")
            .stdout;
        let found = String::from_utf8(found).expect("a copy of a program can be made");
        assert!(
            Command::new("cp")
                .arg(found.trim())
                .arg(&copy)
                .status()
                .expect("a copy of a program can be made")
                .success()
        );
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).expect("a copy of a program can be made");
        copy
    }

    /// The shell runs this with the program as $D.
    fn shell(&self, before: &[&str], script: &str, daemon: &Daemon) -> Command {
        let words = [before, &["sh", "-c", script]].concat();
        let mut shell = Command::new(words[0]);
        shell.args(&words[1..]).env("D", &self.distrilock).env("F", self.folder.path());
        shell.env("DISTRILOCK_SERVER", daemon.tcp()).env("NOBODY", NOBODY.join(" ")).stdin(Stdio::null());
        shell
    }
}

/// We may not kill a program that runs as another user. We say so, and do not wait for it forever,
/// whether or not /proc shows it (`hidepid` of proc(5)).
#[test]
fn survivors_are_reported() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    // As sudo(8) does: a program with the set-user-ID bit that becomes another user altogether.
    programs.copy("setpriv", "other-user", 0o4755);
    for hidden in [0, 2] {
        let script = format!(
            "mount -t proc -o hidepid={hidden} proc /proc && exec setpriv $NOBODY \"$D\" run --max-hold 0.5 \
             --kill-after 0.2 x \"$F/other-user\" --reuid=0 --regid=0 --clear-groups sleep 1001"
        );
        let mut running = Running::start(programs.shell(&["unshare", "--mount"], &script, &daemon));
        let run = running.end();
        assert_eq!(number_of(run.status), 124, "{}", run.err);
        assert!(run.err.contains("keeps running"), "{}", run.err);
        let survivor = run.err.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        kill(Pid::from_raw(survivor.parse().unwrap()), Signal::SIGKILL).unwrap();
        assert!(V1::connect(&daemon.tcp()).gets("x"));
    }
}

/// A process that /proc does not show, since nobody may look into it, is found and killed all the
/// same.
#[test]
fn hidden_processes_are_killed() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    // Nobody may read the program, so nobody may read the process's memory (PR_SET_DUMPABLE of
    // prctl(2)).
    let sleep = programs.copy("sleep", "unreadable", 0o711);
    let script = "mount -t proc -o hidepid=2 proc /proc && exec setpriv $NOBODY \"$D\" run --max-hold 0.5 \
                  --kill-after 0.2 --term-signal CONT x -c 'setsid \"$F/unreadable\" 1001 & setsid sh -c \"\\\"$F/unreadable\\\" 1002 & exit\"'";
    let mut running = Running::start(programs.shell(&["unshare", "--mount"], script, &daemon));
    let run = running.end();
    assert_eq!(number_of(run.status), 0, "it continues in the background: {}", run.err);
    eventually("the lock is free", || V1::connect(&daemon.tcp()).gets("x"));
    let left = Command::new("pgrep").arg("-f").arg(&sleep).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// A PID namespace with the /proc of the one around it, as in some sandboxes: what is ours is
/// ended, what is not lives, even if /proc has its number for one of ours.
#[test]
fn the_proc_of_another_namespace() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    let script = "
        for n in 1 2 3 4 5 6 7 8; do sleep 1003 & others=\"$others $!\"; done
        \"$D\" run --max-hold 0.5 --kill-after 0.2 x -c 'trap \"\" TERM; setsid sh -c \"trap \\\"\\\" TERM; sleep 1002 & exit\" & sleep 1001'
        echo \"status $?\"
        for pid in $others; do kill -0 $pid || echo \"$pid is dead\"; done";
    let unshare = ["unshare", "--pid", "--fork", "--kill-child"];
    let mut running = Running::start(programs.shell(&unshare, script, &daemon));
    let run = running.end();
    assert_eq!(run.out, "status 124\n", "{}", run.err);
    assert!(V1::connect(&daemon.tcp()).gets("x"));
}

/// No /proc at all: nothing is run, since it could not be ended, and the message has the remedy.
#[test]
fn no_proc() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    let script = "mount -t tmpfs none /proc && exec \"$D\" run x echo ran";
    let run = Running::start(programs.shell(&["unshare", "--mount"], script, &daemon)).end();
    assert_eq!((number_of(run.status), run.out.as_str()), (71, ""), "{}", run.err);
    assert!(run.err.contains("mount -t proc"), "{}", run.err);
}

/// /proc disappears while CMD runs: everything is ended nevertheless.
#[test]
fn proc_goes() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    let script = "mount -t proc proc /proc && exec \"$D\" run --max-hold 1 --kill-after 0.2 x -c 'trap \"\" TERM
        mount -t tmpfs none /proc; setsid sh -c \"trap \\\"\\\" TERM; sleep 1002 & sleep 1003\" & sleep 1001'";
    let mut running = Running::start(programs.shell(&["unshare", "--mount"], script, &daemon));
    let run = running.end();
    assert_eq!(number_of(run.status), 124, "{}", run.err);
    running.tree.assert_gone();
}

/// As process 1 of a container, we inherit the orphans of processes that enter from outside, and
/// reap them.
#[test]
fn process_1_reaps() {
    let daemon = Daemon::start();
    let programs = Programs::new();
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut running = Running::start(programs.shell(&unshare, "exec \"$D\" run x sleep 1001", &daemon));
    running.tree.waits_for("sleep 1001");
    let init = running.tree.waits_for(programs.distrilock.to_str().unwrap());
    let mut visitor = Command::new("nsenter");
    visitor.args(["--pid", "--target", &init.to_string(), "sh", "-c", "sleep 1004 > /dev/null & exit 0"]);
    assert!(visitor.stdin(Stdio::null()).status().unwrap().success());
    let mut orphan = None;
    eventually("process 1 has the orphan", || {
        let line = |pid: Pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        orphan = children_of(init).into_iter().map(|(pid, _)| pid).find(|pid| line(*pid).starts_with(b"sleep\x001004"));
        orphan.is_some()
    });
    kill(orphan.unwrap(), Signal::SIGKILL).unwrap();
    eventually("it is reaped", || children_of(init).len() == 1);
    // Process 1 does not die of a signal, but passes it on.
    kill(init, Signal::SIGTERM).unwrap();
    let run = running.end();
    assert_eq!(number_of(run.status), 143, "{}", run.err);
}
