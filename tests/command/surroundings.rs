//! `run` where its caller is unusual, as cron jobs, CI runners, service managers and containers
//! are: signals that it ignores, descriptors that it waits for, limits, signals for every process.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{DISTRILOCK, Daemon, Ended, Running, V1, command, ended, eventually};

/// The command, started by another program, which changes what it inherits.
fn through(program: &[&str], server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(DISTRILOCK).args(arguments);
    command.env("DISTRILOCK_SERVER", server).stdin(Stdio::null());
    command
}

/// The caller ignores SIGCHLD, so that the kernel reports no child's end (wait(2)). CMD's end is
/// noticed nevertheless, with its status, and CMD has SIGCHLD ignored as it would without us.
#[test]
fn sigchld_is_ignored() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let guarded = folder.path().join("data");
    let guarded = guarded.to_str().unwrap();
    let ignoring = ["env", "--ignore-signal=CHLD"];
    for (arguments, code) in [
        (&["run", "x", "sh", "-c", "exit 3"][..], 3),
        (&["run", "-o", "x", "sh", "-c", "exit 3"], 3),
        (&["run", "-F", "x", "sh", "-c", "exit 3"], 3),
        (&["run", "x", "sh", "-c", "kill $$"], 143),
        (&["run", "x", "./no-such-program"], 69),
        (&["run", "--max-hold", "0.3", "--kill-after", "0.2", "x", "sleep", "1001"], 124),
        (&["fence", guarded, "1", "--", "sh", "-c", "exit 3"], 3),
    ] {
        let run = ended(through(&ignoring, &server, arguments));
        assert_eq!(run.code(), code, "{arguments:?}: {}", run.err);
        eventually("the lock is free", || V1::connect(&server).gets("x"));
    }
    for how in [&[][..], &["-F"]] {
        let arguments = [&["run"], how, &["x", "cat", "/proc/self/status"]].concat();
        assert!(ignores(&ended(through(&ignoring, &server, &arguments)), Signal::SIGCHLD), "{how:?}");
        assert!(!ignores(&ended(command(&server, &arguments)), Signal::SIGCHLD), "{how:?}");
    }
}

/// A caller that ignores SIGCHLD, and whose guard is killed.
#[test]
fn the_guard_is_killed_while_sigchld_is_ignored() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let script = "setsid sleep 1001 & exec sleep 1002";
    let mut running = Running::start(through(&["env", "--ignore-signal=CHLD"], &server, &["run", "x", "-c", script]));
    running.tree.waits_for("sleep 1001");
    running.tree.waits_for("sleep 1002");
    kill(running.tree.guard(), Signal::SIGKILL).unwrap();
    let run = running.end();
    running.tree.assert_gone();
    assert_eq!(run.code(), 74, "{}", run.err);
}

fn ignores(status: &Ended, signal: Signal) -> bool {
    let digits = status.out.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("proc_pid_status(5) has it");
    u64::from_str_radix(digits.trim(), 16).expect("proc(5) has it") & (1 << (signal as u32 - 1)) != 0
}

/// A signal that is ignored when we start stays ignored for CMD, SIGPIPE among them, which the
/// standard library ignores for itself; and one that is not stays so.
#[test]
fn ignored_signals_stay_ignored() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    for how in [&[][..], &["-F"]] {
        let arguments = [&["run"], how, &["x", "cat", "/proc/self/status"]].concat();
        let status = ended(through(&["env", "--ignore-signal=HUP,USR1,PIPE,TERM"], &server, &arguments));
        for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGTERM] {
            assert!(ignores(&status, signal), "{how:?} {signal}: {}", status.out);
        }
        assert!(!ignores(&status, Signal::SIGINT), "{how:?}: {}", status.out);
        assert!(!ignores(&ended(command(&server, &arguments)), Signal::SIGPIPE), "{how:?}");
    }
    // What CMD is given reaches it in the same way.
    let arguments = ["run", "x", "sh", "-c", "echo $0 $# $DISTRILOCK_HELD; exit 5", "a b", ""];
    let run = ended(through(&["env", "--ignore-signal=PIPE"], &server, &arguments));
    assert_eq!((run.code(), run.out.as_str()), (5, "a b 1 1\n"), "{}", run.err);
    let missing = ended(through(&["env", "--ignore-signal=PIPE"], &server, &["run", "x", "no-such-program"]));
    assert!(missing.code() == 69 && missing.err.contains("PATH"), "{}", missing.err);
}

/// Signals that are blocked when we start are blocked in CMD, real-time signals among them, and no
/// others are.
#[test]
fn blocked_signals_stay_blocked() {
    let daemon = Daemon::start();
    for how in [&[][..], &["-F"]] {
        let arguments = [&["run"], how, &["x", "grep", "SigBlk", "/proc/self/status"]].concat();
        // 16 is SIGSTKFLT.
        let run = ended(through(&["env", "--block-signal=USR2,RTMAX"], &daemon.tcp(), &arguments));
        assert_eq!(run.out, "SigBlk:\t8000000000000800\n", "{how:?}: {}", run.err);
        assert_eq!(ended(command(&daemon.tcp(), &arguments)).out, "SigBlk:\t0000000000000000\n", "{how:?}");
    }
}

/// A limit on the size of files is an error for us and not our end, and CMD has the signal as it
/// would have without us.
#[test]
fn files_are_limited() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let file = file.to_str().unwrap();
    let limited = ["prlimit", "--fsize=0"];
    let fence = ended(through(&limited, "", &["fence", file, "1", "--", "true"]));
    assert_eq!((fence.code(), fence.err.as_str()), (71, ""), "the message is a file, too");
    for how in [&[][..], &["-F", "--verbose"]] {
        let script = format!("echo x > {file}");
        let run = ended(through(&limited, &server, &[&["run"], how, &["x", "sh", "-c", &script]].concat()));
        assert_eq!(run.code(), 128 + Signal::SIGXFSZ as i32, "{how:?}");
        // Its default is to dump core; here it is only to end.
        eventually("the lock is free", || V1::connect(&server).gets("x"));
        fs::remove_file(file).unwrap();
    }
}

/// Too few descriptors: nothing is started, and the message has the remedy. (With three, not even
/// the dynamic linker finds the program's libraries.)
#[test]
fn descriptors_run_out() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    for limit in 4..=20 {
        let limited = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        let limited: Vec<&str> = limited.iter().map(String::as_str).collect();
        let run = ended(through(&limited, &server, &["run", "x", "echo", "ran"]));
        assert_eq!((run.code(), run.out.as_str()), (71, ""), "{limit}: {}", run.err);
        assert!(run.err.contains("ulimit -n") && run.err.lines().count() == 1, "{limit}: {}", run.err);
        for arguments in [&["ls"][..], &["run", "-F", "x", "true"]] {
            let other = ended(through(&limited, &server, arguments));
            assert!(other.code() == 0 || other.code() == 71 && other.err.contains("ulimit -n"), "{}", other.err);
        }
    }
    let enough = ended(through(&["prlimit", "--nofile=32:32"], &server, &["run", "x", "echo", "ran"]));
    assert_eq!((enough.code(), enough.out.as_str()), (0, "ran\n"), "{}", enough.err);
}

/// The guard of background processes closes what the caller waits for or wants to use again:
/// descriptors that those processes have closed, the working directory, the session.
#[test]
fn the_background_lets_go() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let script = "exec 9> outer 8< .; \"$D\" run x sh -c 'test -e /proc/self/fd/9 || exit 7
        cd /; setsid sleep 1001 9>&- 8<&- > /dev/null 2>&1 &
        exit 4'";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder.path()).stdin(Stdio::null());
    shell.env("D", DISTRILOCK).env("DISTRILOCK_SERVER", &server);
    let mut running = Running::start(shell);
    let run = running.end();
    assert_eq!(run.code(), 4, "{}", run.err);
    // At once, since the user continues.
    let guard = running.tree.guard();
    assert!(!V1::connect(&server).gets("x"));
    let sleep = running.tree.waits_for("sleep 1001");
    assert_eq!(fs::read_link(format!("/proc/{guard}/cwd")).unwrap().to_str(), Some("/"));
    let descriptors = fs::read_dir(format!("/proc/{guard}/fd")).unwrap();
    for descriptor in descriptors {
        let path = descriptor.unwrap().path();
        let target = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert!(!target.contains(folder.path().to_str().unwrap()), "{number} is {target}");
        assert!(number > 2 || target == "/dev/null", "{number} is {target}");
    }
    assert_eq!(nix::unistd::getsid(Some(guard)).unwrap(), guard);
    kill(sleep, Signal::SIGTERM).unwrap();
    running.tree.goes();
    eventually("the lock is free", || V1::connect(&server).gets("x"));
}

/// `--max-hold` counts for what CMD leaves in the background as well, also while `--min-hold` keeps
/// us in the foreground.
#[test]
fn max_hold_in_the_background() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let script = "trap '' TERM; setsid sleep 1001 > /dev/null 2>&1 & setsid sh -c 'sleep 1002 & exit'; exit 4";
    for (options, code) in [(&[][..], 4), (&["--min-hold", "1h"], 124)] {
        let limits = &["run", "--max-hold", "1", "--kill-after", "0.2"][..];
        let mut running = Running::start(command(&server, &[limits, options, &["x", "-c", script]].concat()));
        let run = running.end();
        assert_eq!(run.code(), code, "{}", run.err);
        running.tree.goes();
        assert!(V1::connect(&server).gets("x"));
    }
}

/// Counts the TERM signals that it gets, until the file goes.
const COUNTS: &str = "
import os, signal, sys, time
count = 0
def term(*_):
    global count
    count += 1
    print('count', count, flush=True)
signal.signal(signal.SIGTERM, term)
print('ready', os.getpid(), flush=True)
while os.path.exists(sys.argv[1]): time.sleep(0.01)
print('in all', count)
";

/// A service manager, a container runtime or a CI runner signals every process, in whichever order:
/// CMD gets the signal once. Somebody who signals us twice means two.
#[test]
fn a_signal_for_every_process() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goes-on");
    for (order, count) in
        [(&[0, 1, 2][..], 1), (&[2, 1, 0], 1), (&[1, 2, 0], 1), (&[2, 0, 1], 1), (&[0], 1), (&[1], 1), (&[0, 0], 2)]
    {
        fs::write(&file, "").unwrap();
        let arguments = ["run", "x", "python3", "-c", COUNTS, file.to_str().unwrap()];
        let mut running = Running::start(command(&server, &arguments));
        running.says("\n");
        let cmd = running.out().trim_start_matches("ready ").trim().parse().unwrap();
        let all = [running.pid(), running.tree.guard(), Pid::from_raw(cmd)];
        for (sent, number) in order.iter().enumerate() {
            if sent > 0 && order[sent - 1] == *number {
                running.says(&format!("count {sent}"));
            }
            kill(all[*number], Signal::SIGTERM).unwrap();
        }
        running.says(&format!("count {count}"));
        // Only time can show that no further one comes: several times that for which
        // a signal waits.
        thread::sleep(Duration::from_millis(500));
        fs::remove_file(&file).unwrap();
        let run = running.end();
        assert!(run.out.ends_with(&format!("in all {count}\n")), "{order:?}: {}", run.out);
    }
}

/// A signal that was meant for every process called distrilock has not reached CMD, which would
/// have ended: so it gets it.
#[test]
fn a_signal_for_our_processes() {
    let daemon = Daemon::start();
    let mut running = Running::start(command(&daemon.tcp(), &["run", "x", "sleep", "1001"]));
    running.tree.waits_for("sleep 1001");
    for pid in [running.pid(), running.tree.guard()] {
        kill(pid, Signal::SIGTERM).unwrap();
    }
    assert_eq!(running.end().code(), 143);
    running.tree.goes();
}

/// A real-time signal ends CMD: the status is what a shell gives for it.
#[test]
fn real_time_signals() {
    let daemon = Daemon::start();
    for number in [34, 64] {
        let run = ended(command(&daemon.tcp(), &["run", "x", "sh", "-c", &format!("kill -{number} $$")]));
        assert_eq!(run.code(), 128 + number, "{}", run.err);
    }
}

/// A process whose first thread has ended looks like a zombie, and is ended like any other.
#[test]
fn the_first_thread_has_ended() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("threads.c"), folder.path().join("threads"));
    let text = "#include <pthread.h>\n#include <unistd.h>\nstatic void *work(void *x) { for (;;) pause(); return x; }
        int main(void) { pthread_t t; pthread_create(&t, 0, work, 0); pthread_exit(0); }\n";
    fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").arg("-pthread").arg(&source).arg("-o").arg(&program).status().unwrap();
    assert!(compiled.success());
    let script = format!("setsid {} & exec sleep 1001", program.display());
    let arguments = ["run", "--max-hold", "0.5", "--kill-after", "0.2", "--term-signal", "CONT", "x", "-c", &script];
    let run = ended(command(&daemon.tcp(), &arguments));
    assert_eq!(run.code(), 124, "{}", run.err);
}

/// The state of the processes whose parent this is (proc_pid_stat(5)).
#[cfg(feature = "system-tests")]
pub(crate) fn children_of(parent: Pid) -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").expect("proc(5) has it");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let stats = numbers.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<String> = stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect();
        (fields[1].parse() == Ok(parent.as_raw())).then(|| (Pid::from_raw(pid), fields[0].clone()))
    });
    stats.collect()
}
