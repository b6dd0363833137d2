//! Bad input and faults: each ends with the documented status and a message that says what to do,
//! and leaves neither a process nor a lock behind.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};

use distrilock_testing::Scripted;

use super::support::{DISTRILOCK, Daemon, Running, V1, command, ended, eventually};

/// A tree that is hard to end: one process ignores TERM, one is in its own session and has lost its
/// parent, one is in another group.
const STUBBORN: &str =
    "trap '' TERM; setsid sh -c 'sleep 1001 & exit' & setsid sleep 1002 & sleep 1003 & exec sleep 1004";

#[track_caller]
fn stubborn(running: &Running) {
    for n in 1001..=1004 {
        running.tree.waits_for(&format!("sleep {n}"));
    }
    eventually("the shells have gone", || !running.tree.processes().iter().any(|(_, line)| line.starts_with("sh -c")));
}

/// No daemon: every verb says where it looked and what to do, and CMD does not run.
#[test]
fn no_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = format!("unix:{}/nobody.sock", folder.path().display());
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for server in [nobody, format!("tcp://{nowhere}"), format!("ws://{nowhere}")] {
        for arguments in [
            &["run", "x", "echo", "ran"][..],
            &["run", "-F", "x", "echo", "ran"],
            &["lock", "x"],
            &["ls"],
            &["ping"],
            &["peek", "x"],
        ] {
            let run = ended(command(&server, arguments));
            assert_eq!((run.code(), run.out.as_str()), (68, ""), "{arguments:?} {}", run.err);
            assert!(run.err.contains(&server) && run.err.contains("start the daemon"), "{}", run.err);
        }
    }
    let other = ended(command(&nowhere, &["run", "--unreachable-exit-code", "0", "x", "echo", "ran"]));
    assert_eq!((other.code(), other.out.as_str()), (0, ""));
    let anyway = ended(command(&nowhere, &["run", "--run-anyway", "x", "echo", "ran"]));
    assert_eq!((anyway.code(), anyway.out.as_str()), (0, "ran\n"));
}

/// Several servers are tried in turn. A bad address is refused, and the message shows a good one.
#[test]
fn servers_in_turn() {
    let daemon = Daemon::start();
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let server = daemon.tcp();
    let run = ended(command("", &["--server", &nowhere, "--server", &server, "run", "x", "echo", "ran"]));
    assert_eq!((run.code(), run.out.as_str()), (0, "ran\n"), "{}", run.err);
    let run = ended(command(&format!("{nowhere},ws://{}", daemon.ws()), &["run", "x", "echo", "ran"]));
    assert_eq!((run.code(), run.out.as_str()), (0, "ran\n"), "{}", run.err);
    for run in [ended(command("", &["--server", "http://x", "ping"])), ended(command("http://x", &["ping"]))] {
        assert_eq!(run.code(), 64, "{}", run.err);
        assert!(run.err.contains("tcp://HOST:PORT"), "{}", run.err);
    }
}

/// A port where something else answers.
#[test]
fn a_strange_port() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    for server in [server.clone(), format!("ws://{server}")] {
        let run = ended(command(&server, &["run", "x", "echo", "ran"]));
        assert_eq!((run.code(), run.out.as_str()), (76, ""), "{}", run.err);
        assert!(run.err.contains(&server) && run.err.contains("check the address"), "{}", run.err);
    }
}

/// A port that accepts connections and never answers.
#[test]
fn a_silent_port() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let run = ended(command(&server, &["run", "x", "echo", "ran"]));
    assert_eq!((run.code(), run.out.as_str()), (68, ""), "{}", run.err);
    assert!(run.err.contains("no answer") && run.err.contains("systemctl status"), "{}", run.err);
}

/// `-n` and `-w` bound everything: servers that do not answer, a daemon that hangs while we wait;
/// and `--connect-timeout` bounds the former alone. The status tells that from a lock that is busy.
#[test]
fn the_limit_covers_everything() {
    let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let server = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string()).join(",");
    for options in [&["-n"][..], &["-w", "1"], &["--connect-timeout", "1"]] {
        let mut arguments = vec!["run"];
        arguments.extend(options);
        arguments.extend(["x", "echo", "ran"]);
        let began = Instant::now();
        let run = ended(command(&server, &arguments));
        assert_eq!((run.code(), run.out.as_str()), (68, ""), "{options:?}: {}", run.err);
        // Without the limit, each of the servers has 10 s.
        assert!(began.elapsed() < Duration::from_secs(18), "{options:?}: {:?}", began.elapsed());
        assert!(run.err.contains("no answer within"), "{}", run.err);
    }
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut holder = V1::connect(&server);
    assert!(holder.gets("x"));
    let began = Instant::now();
    let mut waiting = Running::start(command(&server, &["run", "-w", "3", "x", "echo", "ran"]));
    eventually("it waits", || ended(command(&server, &["peek", "x"])).out.contains("waits"));
    daemon.signal(Signal::SIGSTOP);
    let run = waiting.end();
    daemon.signal(Signal::SIGCONT);
    assert_eq!((run.code(), run.out.as_str()), (68, ""), "{}", run.err);
    assert!(run.err.contains("did not answer within") && run.err.contains("systemctl status"), "{}", run.err);
    // The client's own patience with a silent daemon is 20 s.
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
}

/// The daemon dies while CMD runs, and CMD is hard to end.
#[test]
fn the_daemon_dies() {
    let mut daemon = Daemon::start();
    let server = daemon.tcp();
    let mut running = Running::start(command(&server, &["run", "--kill-after", "0.5", "x", "-c", STUBBORN]));
    stubborn(&running);
    daemon.kill();
    let run = running.end();
    running.tree.assert_gone();
    assert_eq!(run.code(), 74, "{}", run.err);
    assert!(
        run.err.contains(&format!("{server}: ")) && run.err.contains("lost") && run.err.contains("ending CMD"),
        "{}",
        run.err
    );
}

/// The daemon hangs while CMD runs, so our own clock ends CMD. The lock stays held until the daemon
/// resumes, and is free afterwards.
#[test]
fn the_daemon_hangs() {
    let daemon = Daemon::setup().flag("--dead-after", "5").start();
    let server = daemon.tcp();
    let mut running = Running::start(command(&server, &["run", "--kill-after", "0.5", "x", "-c", STUBBORN]));
    stubborn(&running);
    daemon.signal(Signal::SIGSTOP);
    let run = running.end();
    running.tree.assert_gone();
    assert_eq!(run.code(), 74, "{}", run.err);
    assert!(run.err.contains("answered nothing"), "{}", run.err);
    daemon.signal(Signal::SIGCONT);
    eventually("the lock is free", || V1::connect(&server).gets("x"));
}

/// A daemon hangs and comes back while CMD is being ended: it must not give the lock to anybody
/// else before CMD is gone.
#[test]
fn the_lock_outlives_the_work() {
    let daemon = Daemon::setup().flag("--dead-after", "20").start();
    let server = daemon.tcp();
    let mut running = Running::start(command(&server, &["run", "--kill-after", "5", "x", "-c", STUBBORN]));
    stubborn(&running);
    daemon.signal(Signal::SIGSTOP);
    eventually("the loss is told", || running.err().contains("lost"));
    daemon.signal(Signal::SIGCONT);
    let mut other = V1::connect(&server);
    eventually("the lock is free", || other.gets("x"));
    running.tree.assert_commands_gone();
    assert_eq!(running.end().code(), 74);
    running.tree.goes();
}

/// The daemon dies while we wait for the lock.
#[test]
fn the_daemon_dies_before_the_grant() {
    let mut daemon = Daemon::start();
    let server = daemon.tcp();
    let mut holder = V1::connect(&server);
    holder.acquire("x");
    let mut running = Running::start(command(&server, &["run", "x", "echo", "ran"]));
    eventually("it waits", || holder.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 1);
    daemon.kill();
    let run = running.end();
    assert_eq!((run.code(), run.out.as_str()), (68, ""), "{}", run.err);
    assert!(run.err.contains(&server), "{}", run.err);
    running.tree.goes();
}

/// SIGKILL for the process that the user started, or for its whole process group, ends the tree,
/// too.
#[test]
fn the_launcher_is_killed() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    for whole_group in [false, true] {
        let mut run = command(&server, &["run", "x", "-c", STUBBORN]);
        run.process_group(0);
        let mut running = Running::start(run);
        stubborn(&running);
        if whole_group {
            killpg(running.pid(), Signal::SIGKILL).unwrap()
        } else {
            running.signal(Signal::SIGKILL)
        }
        // Nothing of CMD is left when the next session gets the lock.
        let mut other = V1::connect(&server);
        eventually("the lock is free", || other.gets("x"));
        running.tree.assert_commands_gone();
        assert_eq!(running.end().code(), 137);
        running.tree.goes();
    }
}

/// The launcher is killed while the guard waits for the lock: the guard gives up its place.
#[test]
fn the_launcher_is_killed_before_the_grant() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut holder = V1::connect(&server);
    holder.acquire("x");
    let mut running = Running::start(command(&server, &["run", "x", "echo", "ran"]));
    eventually("it waits", || holder.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 1);
    running.signal(Signal::SIGKILL);
    running.end();
    running.tree.goes();
    eventually("nobody waits", || holder.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 0);
}

/// The guard is killed, and the lock is gone with it: the launcher ends everything that was
/// guarded.
#[test]
fn the_guard_is_killed() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut running = Running::start(command(&server, &["run", "x", "-c", STUBBORN]));
    stubborn(&running);
    let guard = running.tree.guard();
    kill(guard, Signal::SIGKILL).unwrap();
    let run = running.end();
    running.tree.assert_gone();
    assert_eq!(run.code(), 74, "{}", run.err);
    assert!(V1::connect(&server).gets("x"));
}

/// CMD forks into the background. The processes that are left keep the lock, as under flock(1), and
/// are still guarded. With -o they are not, and the lock is released.
#[test]
fn cmd_goes_into_the_background() {
    let mut daemon = Daemon::start();
    let server = daemon.tcp();
    let script = "setsid sleep 1001 > /dev/null & exit 4";
    let mut running = Running::start(command(&server, &["run", "-o", "x", "-c", script]));
    assert_eq!(running.end().code(), 4);
    assert!(V1::connect(&server).gets("x"));
    let sleep = running.tree.waits_for("sleep 1001");
    eventually("our processes end", || running.tree.processes().len() == 1);
    kill(sleep, Signal::SIGKILL).unwrap();
    running.tree.goes();

    eventually("the lock is free", || V1::connect(&server).gets("x"));
    let mut running = Running::start(command(&server, &["run", "x", "-c", script]));
    assert_eq!(running.end().code(), 4);
    assert!(!V1::connect(&server).gets("x"));
    kill(running.tree.waits_for("sleep 1001"), Signal::SIGKILL).unwrap();
    running.tree.goes();
    assert!(V1::connect(&server).gets("x"));

    let mut running = Running::start(command(&server, &["run", "x", "-c", script]));
    assert_eq!(running.end().code(), 4);
    running.tree.waits_for("sleep 1001");
    daemon.kill();
    running.tree.goes();
}

/// CMD does not exist, or is not a program.
#[test]
fn cmd_cannot_run() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "text").unwrap();
    let strange = folder.path().join("strange");
    fs::write(&strange, "#!/nonexistent/shell\n").unwrap();
    fs::set_permissions(&strange, fs::Permissions::from_mode(0o755)).unwrap();
    for (program, part) in [
        ("no-such-program", "PATH"),
        (plain.to_str().unwrap(), "chmod +x"),
        (strange.to_str().unwrap(), "cannot run"),
        ("/", "chmod"),
    ] {
        for options in [&[][..], &["-F"]] {
            let run = ended(command(&server, &[&["run"], options, &["x", program]].concat()));
            assert_eq!(run.code(), 69, "{}", run.err);
            assert!(run.err.contains(program) && run.err.contains(part), "{}", run.err);
            eventually("the lock is free", || V1::connect(&server).gets("x"));
        }
    }
}

/// Our streams are closed, or nobody reads them any more.
#[test]
fn streams_are_gone() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let through_shell = |script: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", script]).env("D", DISTRILOCK).env("DISTRILOCK_SERVER", &server).stdin(Stdio::null());
        ended(shell)
    };
    let run = through_shell("$D run x cat <&-; echo $?");
    assert_eq!(run.out, "0\n", "{}", run.err);
    let run = through_shell("$D run x sh -c 'exit 5' <&- >&- 2>&-; echo $?");
    assert_eq!(run.out, "5\n", "{}", run.err);
    let run = through_shell("$D run x yes | head -n 1; echo ${PIPESTATUS[0]}");
    assert_eq!(run.out, "y\n141\n", "{}", run.err);
    for verb in ["lock x", "ls", "ping", "peek x", "completions bash"] {
        let run = through_shell(&format!("$D {verb} > /dev/full; echo $?"));
        assert_eq!(run.out, "71\n", "{verb}: {}", run.err);
        assert!(run.err.contains("stdout"), "{}", run.err);
    }
    assert!(V1::connect(&server).gets("x"));
}

/// Names and numbers out of range, and options that contradict each other: status 64, and a line
/// that says what is wrong.
#[test]
fn bad_command_lines() {
    let long = "x".repeat(252);
    let note = "n".repeat(257);
    for (arguments, part) in [
        (&["run", "a b", "true"][..], "A-Z a-z"),
        (&["run", "", "true"], "must not be empty"),
        (&["run", &long, "true"], "252"),
        (&["run", "a,a", "true"], "twice"),
        (&["run", "x"], "no CMD"),
        (&["run", "9"], "file descriptor"),
        (&["run"], "NAME"),
        (&["run", "-w", "-1", "x", "true"], "-1"),
        (&["run", "-w", "soon", "x", "true"], "500ms"),
        (&["run", "-E", "256", "x", "true"], "256"),
        (&["run", "-N", "0", "x", "true"], "1..=1024"),
        (&["run", "-N", "1025", "x", "true"], "1..=1024"),
        (&["run", "--lease", "cpu=3:2", "x", "true"], "COUNT"),
        (&["run", "--lease", "x=1:2", "x", "true"], "twice"),
        (&["run", "--on-lost", "cry", "x", "true"], "signal:SIG"),
        (&["run", "--term-signal", "LOUD", "x", "true"], "name of a signal"),
        (&["run", "--note", &note, "x", "true"], "256 bytes"),
        (&["run", "--note", "a\u{1b}[2J", "x", "true"], "control"),
        (&["run", "-x", "-s", "x", "true"], "--exclusive"),
        (&["run", "-n", "-w", "1", "x", "true"], "--nonblock"),
        (&["run", "-F", "-o", "x", "true"], "--close"),
        (&["run", "-F", "--max-hold", "1", "x", "true"], "--max-hold"),
        (&["run", "-s", "-N", "2", "x", "true"], "one holder"),
        (&["run", "-N", "2", "x,y", "true"], "--lease"),
        (&["run", "--once-per", "1", "--min-hold", "1", "x", "true"], "--once-per"),
        (&["run", "--once-per", "1", "--once-per-success", "1", "x", "true"], "--once-per-success"),
        (&["run", "--connect-timeout", "soon", "x", "true"], "500ms"),
        (&["run", "--ok-if-busy", "-E", "3", "x", "true"], "--ok-if-busy"),
        (&["run", "-c", "true", "x", "true"], "exactly one string"),
        (&["try", "-w", "1", "x"], "lock -w"),
        (&["fence", "file", "-1"], "-1"),
        (&["fence", "file", "18446744073709551616"], "18446744073709551616"),
        (&["bench", "--connections", "0"], "0"),
        (&["fly"], "fly"),
        (&["run:guard"], "internal to distrilock run"),
        (&["run:start"], "internal to distrilock run"),
    ] {
        let run = ended(command("127.0.0.1:1", arguments));
        assert_eq!(run.code(), 64, "{arguments:?}: {}", run.err);
        assert!(run.err.contains(part), "{arguments:?}: {}", run.err);
        assert!(!run.err.contains('\u{1b}') && run.out.is_empty(), "{arguments:?}");
    }
    for asked in [&["--help"][..], &["run", "--help"], &["--version"]] {
        assert_eq!(ended(command("", asked)).code(), 0);
    }
}

/// Each refusal has its exit status, and the daemon's message is shown.
#[test]
fn refusals() {
    for (word, code) in [
        ("busy", 1),
        ("timeout", 1),
        ("mismatch", 65),
        ("deadlock", 65),
        ("limit", 77),
        ("denied", 77),
        ("storage", 71),
        ("closing", 68),
        ("bad_request", 76),
        ("unknown_op", 76),
        ("something_new", 65),
    ] {
        let refuses =
            Scripted::start(move |_| serde_json::json!({"ok": false, "error": word, "message": "the sentence"}));
        let run = ended(command(refuses.server(), &["run", "--verbose", "x", "echo", "ran"]));
        assert_eq!((run.code(), run.out.as_str()), (code, ""), "{word}: {}", run.err);
        assert!(run.err.contains("the sentence") && run.err.contains(refuses.server()), "{}", run.err);
    }
}

/// The system gives this user no more threads: the command says so, and does not panic.
#[test]
fn no_threads() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("distrilock");
    fs::copy(env!("CARGO_BIN_EXE_distrilock"), &program).unwrap();
    let server = daemon.tcp().replace("127.0.0.1", "localhost");
    for arguments in [&["ping"][..], &["wait", "x"], &["bench", "--connections", "2", "--seconds", "0.1"]] {
        // The limit does not apply to root (getrlimit(2)).
        let mut limited = if nix::unistd::Uid::effective().is_root() {
            let mut limited = Command::new("setpriv");
            limited.args(["--reuid=65533", "--regid=65533", "--clear-groups", "prlimit"]);
            limited
        } else {
            Command::new("prlimit")
        };
        limited.arg("--nproc=1:1").arg(&program).args(["--server", &server]).args(arguments);
        let run = ended(limited);
        assert!(matches!(run.code(), 68 | 71), "{arguments:?}: {} {}", run.code(), run.err);
        assert!(run.err.contains("cannot start a thread"), "{arguments:?}: {}", run.err);
    }
}

/// If CMD may take that long to end, no time is left to notice a dead daemon.
#[test]
fn a_stop_that_takes_too_long() {
    let daemon = Daemon::start();
    let run = ended(command(&daemon.tcp(), &["run", "--kill-after", "60", "x", "echo", "ran"]));
    assert_eq!((run.code(), run.out.as_str()), (65, ""), "{}", run.err);
    assert!(run.err.contains("--dead-after") && run.err.contains("--kill-after"), "{}", run.err);
}
