//! The command against real daemons: what `run` does with processes, and how everything ends. Bad
//! input and faults are in `command/faults.rs`.

mod doctor;
mod faults;
mod history;
mod pages;
mod scripts;
#[cfg(feature = "system-tests")]
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod surroundings;
mod verify;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use support::{DISTRILOCK, Daemon, PATIENCE, Running, V1, command, ended, eventually, files};

/// CMD runs while the lock is held, its status is the command's, and the lock is free afterwards.
#[test]
fn a_command_under_a_lock() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let run =
        ended(command(&server, &["run", "nightly", "sh", "-c", "echo \"$DISTRILOCK_LOCK $DISTRILOCK_HELD\"; exit 7"]));
    assert_eq!((run.code(), run.out.as_str(), run.err.as_str()), (7, "nightly 1\n", ""));
    assert!(V1::connect(&server).gets("nightly"));

    let mut running = Running::start(command(&server, &["run", "nightly", "sleep", "1000"]));
    running.tree.waits_for("sleep 1000");
    let other = ended(command(&server, &["run", "-n", "nightly", "true"]));
    assert_eq!((other.code(), other.err.as_str()), (1, ""), "like flock(1): it says nothing");
    let other = ended(command(&server, &["run", "-w", "0.1", "-E", "75", "--verbose", "nightly", "true"]));
    assert_eq!(other.code(), 75);
    assert!(other.err.contains(&server) && other.err.contains("distrilock peek"), "{}", other.err);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 143);
    running.tree.assert_gone();
    assert!(V1::connect(&server).gets("nightly"));
}

/// A status, a signal and a string for the shell come through; everything after NAME belongs to
/// CMD.
#[test]
fn words_and_statuses() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    for (arguments, code, out) in [
        (&["run", "x", "--", "printf", "%s.", "--", "-n", "a b"][..], 0, "--.-n.a b."),
        (&["run", "x", "printf", "%s.", "-n", "--", "-c"], 0, "-n.--.-c."),
        (&["run", "x", "-c", "echo $((6*7)); exit 3"], 3, "42\n"),
        (&["run", "-c", "echo $((6*7))", "x"], 0, "42\n"),
        (&["run", "x", "sh", "-c", "kill -KILL $$"], 137, ""),
        (&["run", "x", "sh", "-c", "kill -TERM $$"], 143, ""),
        (&["run", "-s", "x", "true"], 0, ""),
        (&["run", "-o", "-x", "-w", "5", "x", "true"], 0, ""),
    ] {
        let run = ended(command(&server, arguments));
        assert_eq!((run.code(), run.out.as_str(), run.err.as_str()), (code, out, ""), "{arguments:?}");
    }
    // A command killed by a signal that was not passed on shows as a status, as under flock(1).
    assert_eq!(ended(command(&server, &["run", "x", "sh", "-c", "kill -TERM $$"])).status.code(), Some(143));
}

/// CMD reads the input that it would have read without us, unless `--no-stdin` is given.
#[test]
fn the_input_is_cmds() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    fs::write(&input, "from above").unwrap();
    for (arguments, out) in [(&["run", "x", "cat"][..], "from above"), (&["run", "--no-stdin", "x", "cat"], "")] {
        let mut cat = command(&server, arguments);
        cat.stdin(fs::File::open(&input).unwrap());
        assert_eq!(ended(cat).out, out);
    }
}

/// An inner `distrilock run` tells CMD about its own lock, and nothing about the outer one.
#[test]
fn inner_values_win() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut outer = command(&server, &["run", "outer", DISTRILOCK, "run", "inner", "sh", "-c"]);
    outer.arg("echo $DISTRILOCK_LOCK $DISTRILOCK_SLOT $DISTRILOCK_FENCE").env("DISTRILOCK_SLOT", "9");
    outer.env("DISTRILOCK_FENCE", "9");
    let outer = ended(outer);
    assert_eq!((outer.code(), outer.out.as_str()), (0, "inner\n"), "{}", outer.err);
}

/// Ten commands started at once, on two daemons of one directory, run one after the other: each
/// creates a file that must not exist yet.
#[test]
fn ten_at_once_on_two_daemons() {
    let one = Daemon::start();
    let other = Daemon::setup().directory(one.directory()).start();
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let script = format!(
        "set -C; echo $$ > '{0}' || exit 99; sleep 0.02; rm '{0}'; set +C; echo ran >> '{0}.log'",
        witness.display()
    );
    let servers = [one.tcp(), other.tcp()];
    let runs: Vec<Running> =
        (0..10).map(|n| Running::start(command(&servers[n % 2], &["run", "-w", "60", "one", "-c", &script]))).collect();
    for mut run in runs {
        let ended = run.end();
        assert_eq!(ended.code(), 0, "{}", ended.err);
        run.tree.assert_gone();
    }
    let log = fs::read_to_string(folder.path().join("witness.log")).unwrap();
    assert_eq!(log.lines().count(), 10);
    assert!(V1::connect(&servers[0]).gets("one"));
}

/// `--max-hold` ends everything that CMD started, with SIGKILL if necessary.
#[test]
fn max_hold() {
    let daemon = Daemon::start();
    let script = "trap '' TERM; setsid sleep 1001 & sleep 1002";
    let run = ended(command(&daemon.tcp(), &["run", "--max-hold", "0.3", "--kill-after", "0.2", "x", "-c", script]));
    assert_eq!(run.code(), 124, "{}", run.err);
    assert!(run.err.contains("--max-hold"), "{}", run.err);
    assert!(V1::connect(&daemon.tcp()).gets("x"));
}

/// `--term-signal` is the first signal, and a process that obeys it is not killed.
#[test]
fn term_signal() {
    let daemon = Daemon::start();
    let script = "trap 'echo cleaned up; exit 0' USR1; while :; do sleep 0.05; done";
    let run = ended(command(&daemon.tcp(), &["run", "--max-hold", "0.3", "--term-signal", "usr1", "x", "-c", script]));
    assert_eq!((run.code(), run.out.as_str()), (124, "cleaned up\n"), "{}", run.err);
}

/// `--min-hold` keeps the lock, and us, after CMD's end; a signal ends that.
#[test]
fn min_hold() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let began = Instant::now();
    let run = ended(command(&server, &["run", "--min-hold", "0.5", "x", "true"]));
    assert_eq!(run.code(), 0);
    assert!(began.elapsed() >= Duration::from_millis(500));

    let mut running =
        Running::start(command(&server, &["run", "--min-hold", "1h", "x", "sh", "-c", "echo done; exit 5"]));
    running.says("done");
    let guard = running.tree.guard();
    eventually("CMD has ended", || running.tree.processes().len() == 2);
    assert_ne!(guard, running.pid());
    assert!(!V1::connect(&server).gets("x"));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 5);
    assert!(V1::connect(&server).gets("x"));
}

/// `--once-per`: one of several hosts' cron jobs runs; until the time is over, the others do
/// nothing and exit with status 0. Nothing stays behind: neither the end of the run's processes nor
/// that of the daemon forgets the run, which does not keep the name from others.
#[test]
fn once_per() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::setup().directory(directory.path()).start();
    let run = |daemon: &Daemon, options: &[&str]| {
        let mut arguments = vec!["run"];
        arguments.extend(options);
        arguments.extend(["x", "-c", "echo ran; exit 3"]);
        let run = ended(command(&daemon.tcp(), &arguments));
        (run.code(), run.out, run.err)
    };
    let (ran, skipped) = ((3, "ran\n".to_owned(), String::new()), (0, String::new(), String::new()));
    assert_eq!(run(&daemon, &["--once-per", "1h"]), ran);
    assert_eq!(run(&daemon, &["--once-per", "1h"]), skipped);
    assert_eq!(run(&daemon, &["--once-per", "1h", "-E", "9"]).0, 9);
    let (code, out, err) = run(&daemon, &["--once-per", "1h", "--verbose"]);
    assert!(code == 0 && out.is_empty() && err.contains("the last run under x began"), "{err}");
    assert_eq!(run(&daemon, &["-n"]), ran);
    daemon.kill();
    let daemon = Daemon::setup().directory(directory.path()).start();
    assert_eq!(run(&daemon, &["--once-per", "1h"]), skipped);
    // The time is over at once.
    assert_eq!(run(&daemon, &["--once-per", "0"]), ran);
    // A run of which the record is old is due, somewhat before the time is over, too.
    let stamp = daemon.directory().join(".distrilock/stamps/x.run");
    let now = fs::read_to_string(&stamp).unwrap();
    let ms: u64 = now.trim().rsplit(' ').next().unwrap().parse().unwrap();
    for (ago_s, due) in [(3000, false), (3300, true)] {
        fs::write(&stamp, format!("distrilock run {:020}\n", ms - ago_s * 1000)).unwrap();
        assert_eq!(run(&daemon, &["--once-per", "1h"]), if due { ran.clone() } else { skipped.clone() }, "{ago_s}");
    }
}

/// `--once-per-success`: a run that fails does not count, and the next one runs again.
#[test]
fn once_per_success() {
    let daemon = Daemon::start();
    let run = |script: &str| {
        let run = ended(command(&daemon.tcp(), &["run", "--once-per-success", "1d", "x", "-c", script]));
        assert_eq!(run.err, "");
        (run.code(), run.out)
    };
    assert_eq!(run("echo one; exit 3"), (3, "one\n".into()));
    assert_eq!(run("echo two; kill -KILL $$"), (137, "two\n".into()));
    assert_eq!(run("echo three"), (0, "three\n".into()));
    assert_eq!(run("echo four"), (0, String::new()));
}

/// A daemon that is older and keeps no record of runs: CMD is not run, and the message says what to
/// do.
#[test]
fn once_per_with_an_old_daemon() {
    let daemon = distrilock_testing::Scripted::start(|request| match request["op"].as_str() {
        Some("acquire") => serde_json::json!({"ok": true, "lock": request["lock"]}),
        _ => serde_json::json!({"ok": false, "error": "unknown_op", "message": "no such op"}),
    });
    let run = ended(command(daemon.server(), &["run", "--once-per", "1d", "x", "echo", "ran"]));
    assert_eq!((run.code(), run.out.as_str()), (76, ""), "{}", run.err);
    assert!(run.err.contains("upgrade distrilockd"), "{}", run.err);
}

/// The lock is lost while the host is frozen, the lock directory fails, or the daemon falls silent,
/// before the run is recorded: CMD is not run, since another host may run it or have run it.
#[test]
fn once_per_without_a_record() {
    for (answer, status, says) in [
        (Some(serde_json::json!({"ok": false, "error": "lost", "message": "it was deleted"})), 74, "it was deleted"),
        (Some(serde_json::json!({"ok": false, "error": "storage", "message": "the disk"})), 71, "the disk"),
        (None, 68, "did not answer"),
    ] {
        // The first request reads the stamp, the second one writes it.
        let read = std::sync::atomic::AtomicBool::new(false);
        let daemon = distrilock_testing::Scripted::start(move |request| match request["op"].as_str() {
            Some("acquire") => serde_json::json!({"ok": true, "lock": request["lock"]}),
            Some("stamp") if request.get("age_ms").is_none() => {
                read.store(true, std::sync::atomic::Ordering::Relaxed);
                serde_json::json!({"ok": true, "lock": "x"})
            }
            Some("stamp") => {
                assert!(read.load(std::sync::atomic::Ordering::Relaxed), "the stamp is read first");
                answer.clone().unwrap_or_else(|| {
                    loop {
                        std::thread::park()
                    }
                })
            }
            _ => serde_json::json!({"ok": true}),
        });
        let run = ended(command(daemon.server(), &["run", "--once-per", "1d", "x", "echo", "ran"]));
        assert_eq!((run.code(), run.out.as_str()), (status, ""), "{}", run.err);
        assert!(run.err.contains(says), "{}", run.err);
    }
}

/// What counts is when the run began, even if it is recorded after its end.
#[test]
fn a_long_run_is_recorded_by_its_beginning() {
    let daemon = Daemon::start();
    let run = ended(command(&daemon.tcp(), &["run", "--once-per-success", "1d", "x", "-c", "sleep 2; date +%s%3N"]));
    let ended_ms: u64 = run.out.trim().parse().unwrap();
    let stamp = fs::read_to_string(daemon.directory().join(".distrilock/stamps/x.run")).unwrap();
    let began_ms: u64 = stamp.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(began_ms + 500 < ended_ms, "{began_ms} {ended_ms}");
}

/// One file is one lock and one fence, whichever way leads to it; a path through a folder that does
/// not exist is refused.
#[test]
fn one_file_by_two_paths() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path).display().to_string();
    fs::create_dir(at("d")).unwrap();
    std::os::unix::fs::symlink("d", at("link")).unwrap();
    let (one, other) = (at("d/x"), at("link/../link//x"));
    let run = ended(command(&server, &["run", "-n", &one, DISTRILOCK, "run", "-n", "-E", "9", &other, "echo", "both"]));
    assert_eq!((run.code(), run.out.as_str()), (9, ""), "{}", run.err);
    let run = ended(command(&server, &["run", "-n", &at("none/x"), "true"]));
    assert_eq!(run.code(), 64);
    assert!(run.err.contains("there is no folder") && run.err.contains("none"), "{}", run.err);

    fs::write(at("ledger"), "").unwrap();
    std::os::unix::fs::symlink("ledger", at("by-link")).unwrap();
    let fence = |file: &str, number: &str| ended(command("", &["fence", file, number])).code();
    assert_eq!(fence(&at("ledger"), "5"), 0);
    assert_eq!((fence(&at("by-link"), "4"), fence(&at("by-link"), "6"), fence(&at("ledger"), "5")), (1, 0, 1));
    assert_eq!((fence(&at("d"), "5"), fence(&at("d/"), "4"), fence(&at("link/"), "4")), (0, 1, 1));
    // An earlier version recorded beside the link.
    fs::copy(at("ledger.fence"), at("by-link.fence")).unwrap();
    fs::remove_file(at("ledger.fence")).unwrap();
    assert_eq!((fence(&at("by-link"), "5"), fence(&at("by-link"), "6")), (1, 0));
}

/// What others say of themselves reaches no terminal: neither as a table, nor as JSON, which still
/// means the same. In a pipe, `ls --watch` has no codes for a terminal, and ends in silence when
/// its reader does.
#[test]
fn lists_in_a_pipe() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut client = V1::connect(&server);
    let note = "a\u{202e}b\u{2066}";
    let hello = client.request(serde_json::json!({"op": "hello", "note": note}));
    assert_eq!(hello["ok"], true);
    assert!(client.gets("x"));
    for verb in [&["ls", "--json"][..], &["peek", "--json", "x"]] {
        let run = ended(command(&server, verb));
        assert!(run.out.contains("a\\u202eb\\u2066"), "{}", run.out);
        let line: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        assert_eq!(line["holders"][0]["note"], note);
    }
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", "$D ls --watch | head -n 4; echo ${PIPESTATUS[0]}"]).env("D", DISTRILOCK);
    shell.env("DISTRILOCK_SERVER", &server);
    let run = ended(shell);
    assert!(!run.out.contains('\u{1b}') && run.out.matches("LOCK").count() == 2, "{}", run.out);
    assert!(run.out.ends_with("\n0\n") && run.err.is_empty(), "{}{}", run.out, run.err);
}

/// The options for cron: another host, a busy lock that is no failure, and a random wait.
#[test]
fn cron_helpers() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let elsewhere = ended(command(&server, &["run", "--only-on", "no-such-host,*.invalid", "x", "echo", "ran"]));
    assert_eq!((elsewhere.code(), elsewhere.out.as_str()), (0, ""));
    let here = ended(command(&server, &["run", "--only-on", "no-such-host,*", "--jitter", "50ms", "x", "echo", "ran"]));
    assert_eq!((here.code(), here.out.as_str()), (0, "ran\n"));

    let mut holder = V1::connect(&server);
    holder.acquire("x");
    let busy = ended(command(&server, &["run", "-n", "--ok-if-busy", "x", "echo", "ran"]));
    assert_eq!((busy.code(), busy.out.as_str()), (0, ""));
    let anyway = ended(command(&server, &["run", "-n", "--run-anyway", "x", "sh", "-c", "echo $DISTRILOCK_HELD"]));
    assert_eq!((anyway.code(), anyway.out.as_str()), (0, "0\n"));
    assert!(anyway.err.contains("without the lock"), "{}", anyway.err);
}

/// The exit status after a lost lock, with `--on-lost` and `--lost-exit-code`.
#[test]
fn what_to_do_about_a_loss() {
    for (options, code, out) in [
        (&["--lost-exit-code", "9"][..], 9, ""),
        (&["--on-lost", "warn"], 3, "went on\n"),
        (&["--on-lost", "signal:USR1"], 4, "told\n"),
    ] {
        let mut daemon = Daemon::start();
        let server = daemon.tcp();
        let script = "trap 'echo told; exit 4' USR1; echo $$ > /dev/null; n=0
            while [ $n -lt 40 ]; do sleep 0.05; n=$((n+1)); done; echo went on; exit 3";
        let arguments = [&["run"], options, &["x", "sh", "-c", script]].concat();
        let mut running = Running::start(command(&server, &arguments));
        running.tree.waits_for("sleep 0.05");
        daemon.kill();
        let run = running.end();
        assert_eq!((run.code(), run.out.as_str()), (code, out), "{options:?}: {}", run.err);
        assert!(run.err.contains("lost"), "{}", run.err);
        running.tree.goes();
    }
}

/// `-F`: no process of ours is left, and the lock lasts as long as any process has the connection.
#[test]
fn no_fork() {
    let daemon = Daemon::start();
    for server in [daemon.tcp(), format!("ws://{}", daemon.ws())] {
        let script = "echo \"$DISTRILOCK_LOCK\"; sleep 1003 & exit 3";
        let mut running = Running::start(command(&server, &["run", "-F", "x", "sh", "-c", script]));
        let run = running.end();
        assert_eq!((run.code(), run.out.as_str()), (3, "x\n"), "{}", run.err);
        let sleep = running.tree.waits_for("sleep 1003");
        assert_eq!(running.tree.processes().len(), 1, "{:?}", running.tree.processes());
        assert!(!V1::connect(&daemon.tcp()).gets("x"));
        kill(sleep, Signal::SIGKILL).unwrap();
        eventually("the lock is free", || V1::connect(&daemon.tcp()).gets("x"));
    }
}

/// `lock` holds until its input ends, answers verify, and is visible to peek, ls and wait.
#[test]
fn lock_and_who_looks() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let server = server.as_str();
    let mut lock = command(server, &["lock", "--note", "by hand", "x"]);
    let (input, output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    lock.stdin(input);
    let input = output;
    let mut lock = Running::start(lock);
    lock.says("\"held\":true");
    nix::unistd::write(&input, b"verify\n").unwrap();
    lock.says("{\"held\":true}\n");
    let peek = ended(command(server, &["peek", "x"]));
    assert_eq!(peek.code(), 1);
    assert!(peek.out.starts_with("x is held by ") && peek.out.contains("by hand"), "{}", peek.out);
    let json = ended(command(server, &["peek", "--json", "x"]));
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["locked"], &json["holders"][0]["note"]), (&true.into(), &"by hand".into()));
    let ls = ended(command(server, &["ls"]));
    assert!(ls.out.starts_with("LOCK") && ls.out.contains("by hand"), "{}", ls.out);
    let ls = ended(command(server, &["ls", "--json"]));
    let first: serde_json::Value = serde_json::from_str(ls.out.lines().next().unwrap()).unwrap();
    assert_eq!(first["lock"], "x");
    let refused = ended(command(server, &["try", "x"]));
    assert_eq!((refused.code(), refused.out.as_str()), (1, ""));
    let waited = ended(command(server, &["wait", "-w", "0.2", "-E", "8", "x"]));
    assert_eq!(waited.code(), 8);

    let mut waiting = Running::start(command(server, &["wait", "x"]));
    drop(input);
    assert_eq!(lock.end().code(), 0);
    assert_eq!(waiting.end().code(), 0);
    assert_eq!(ended(command(server, &["peek", "x"])).code(), 0);
    // The input has ended already: the lock is taken and given back.
    let tried = ended(command(server, &["try", "x"]));
    assert_eq!(tried.code(), 0);
    assert!(tried.out.contains("\"lock\":\"x\""), "{}", tried.out);
}

/// A signal ends `lock` and leaves no lock. If it still waited, the status is the one that a shell
/// gives for the signal.
#[test]
fn lock_and_signals() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let endless = || fs::File::open("/dev/zero").unwrap();
    let mut lock = command(&server, &["lock", "x"]);
    lock.stdin(endless());
    let mut lock = Running::start(lock);
    lock.says("held");
    let mut waiting = command(&server, &["lock", "x"]);
    waiting.stdin(endless());
    let mut waiting = Running::start(waiting);
    let mut looks = V1::connect(&server);
    eventually("it waits", || looks.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 1);
    waiting.signal(Signal::SIGINT);
    assert_eq!(waiting.end().code(), 130);
    lock.signal(Signal::SIGTERM);
    assert_eq!(lock.end().code(), 0);
    assert!(V1::connect(&server).gets("x"));
}

/// ping and bench print what they measured, and leave no lock.
#[test]
fn ping_and_bench() {
    let daemon = Daemon::setup().flag("--linger", "0").start();
    let server = daemon.tcp();
    let ping = ended(command(&server, &["ping"]));
    assert_eq!(ping.code(), 0);
    assert!(ping.out.starts_with(&format!("tcp://{server} answers after ")), "{}", ping.out);
    let ws = format!("ws://{}", daemon.ws());
    for (server, more) in [(&server, &[][..]), (&server, &["--contended"]), (&ws, &[])] {
        let bench = ended(command(server, &[&["bench", "--connections", "3", "--seconds", "0.3"], more].concat()));
        assert_eq!(bench.code(), 0, "{}", bench.err);
        let pairs = bench.out.split(" s: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(pairs.parse::<u32>().unwrap() > 0, "{}", bench.out);
    }
    eventually("no lock file is left", || files(daemon.directory()).is_empty());
}

/// Several fences for one file at once: the highest is kept, and no lower one is accepted after it.
#[test]
fn fences() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    let file = file.to_str().unwrap();
    let runs: Vec<(u32, Running)> = (1..=8)
        .map(|n| {
            (
                n,
                Running::start(command(
                    "",
                    &["fence", file, &n.to_string(), "--", "sh", "-c", "echo $0 >> \"$1\"", &n.to_string(), file],
                )),
            )
        })
        .collect();
    for (n, mut run) in runs {
        let ended = run.end();
        assert!(matches!(ended.code(), 0 | 1), "{n}: {}", ended.err);
    }
    let written: Vec<u32> = fs::read_to_string(file).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert!(written.is_sorted() && written.last() == Some(&8), "{written:?}");
    let late = ended(command("", &["fence", file, "7"]));
    assert_eq!(late.code(), 1);
    assert!(late.err.contains("8 was seen"), "{}", late.err);
    assert_eq!(ended(command("", &["fence", file, "8"])).code(), 0);
    assert_eq!(ended(command("", &["fence", "-E", "9", file, "0"])).code(), 9);
    assert_eq!(ended(command("", &["fence", "/nonexistent/data", "1"])).code(), 71);
}

/// A wait ends as soon as the lock is free, not when some time is over.
#[test]
fn a_wait_ends_when_the_lock_is_free() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut holder = V1::connect(&server);
    holder.acquire("x");
    let mut waiting = Running::start(command(&server, &["run", "--verbose", "x", "echo", "ran"]));
    let mut looks = V1::connect(&server);
    eventually("it waits", || looks.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 1);
    holder.release("x");
    let began = Instant::now();
    let run = waiting.end();
    assert_eq!((run.code(), run.out.as_str()), (0, "ran\n"));
    assert!(run.err.contains("granted after") && began.elapsed() < PATIENCE, "{}", run.err);
}

/// `ls` shows who a holder is, where it runs, and what it runs; `--watch` shows changes.
#[test]
fn who_holds() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut running = Running::start(command(&server, &["run", "x", "sleep", "1001"]));
    running.tree.waits_for("sleep 1001");
    let listed = ended(command(&server, &["ls", "--json"]));
    let lock: serde_json::Value = serde_json::from_str(listed.out.lines().next().unwrap()).unwrap();
    let holder = &lock["holders"][0];
    assert_eq!(holder["command"], "sleep 1001");
    assert_eq!(holder["pid"], u64::from(running.tree.guard().as_raw().unsigned_abs()));
    assert!(holder["host"].is_string() && holder["user"].is_string(), "{holder}");
    let table = ended(command(&server, &["ls"])).out;
    assert!(table.contains("sleep 1001"), "{table}");
    let mut watching = Running::start(command(&server, &["ls", "--watch"]));
    watching.says("sleep 1001");
    assert!(!watching.out().contains("waits"), "{}", watching.out());
    let waiting = Running::start(command(&server, &["run", "x", "true"]));
    eventually("the waiter is listed", || ended(command(&server, &["ls"])).out.contains("waits"));
    watching.says("waits");
    watching.signal(Signal::SIGINT);
    watching.end();
    drop(waiting);
    running.signal(Signal::SIGTERM);
    running.end();
}
