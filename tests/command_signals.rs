//! Signals and the terminal: a command under `distrilock run` behaves at the keyboard as it does
//! without. The test runs a real shell with job control on a pseudo-terminal.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{DISTRILOCK, Daemon, Running, V1, command, eventually};

/// Reads the terminal's screen and presses its keys.
struct Keyboard {
    keys: File,
    screen: Arc<Mutex<String>>,
    /// Reads until nobody has the terminal open any more.
    reader: JoinHandle<()>,
    shell: Running,
}

const PROMPT: &str = "ready> ";

impl Keyboard {
    /// Starts a shell with job control on its own terminal.
    fn with_shell(server: &str) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let (near, far) = (File::from(pty.master), pty.slave);
        // openpty(3) leaves both open in every program that the tests start.
        for end in [near.as_fd(), far.as_fd()] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("an open descriptor");
        }
        let screen: Arc<Mutex<String>> = Arc::default();
        let seen = Arc::clone(&screen);
        let mut reader = near.try_clone().expect("a descriptor");
        let to_the_end = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                seen.lock().expect("no test panics with it").push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let mut shell = Command::new("setsid");
        let stream = || far.try_clone().expect("a descriptor");
        shell.args(["--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"]);
        shell.env("PS1", PROMPT).env("D", DISTRILOCK).env("DISTRILOCK_SERVER", server).env("TERM", "dumb");
        let shell = Running::on_terminal(shell, [stream(), stream(), stream()]);
        let keyboard = Self { keys: near, screen, reader: to_the_end, shell };
        keyboard.shows(PROMPT, 1);
        keyboard
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal takes it");
    }

    fn screen(&self) -> String {
        self.screen.lock().expect("the reader does not panic").clone()
    }

    /// Waits until the screen has shown this text this many times.
    #[track_caller]
    fn shows(&self, text: &str, times: usize) {
        let count = || self.screen().matches(text).count();
        eventually(&format!("the screen shows {text:?} {times} times; it shows {:?}", self.screen()), || {
            count() >= times
        });
    }

    #[track_caller]
    fn waits_for(&self, beginning: &str) -> Pid {
        self.shell.tree.waits_for(beginning)
    }
}

/// The process group that has the terminal, the process's own group and its state
/// (proc_pid_stat(5)).
fn stat(pid: Pid) -> (i32, i32, String) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    (fields[5].parse().expect("a number"), fields[2].parse().expect("a number"), fields[0].to_owned())
}

/// The state, empty if the process has ended.
fn state_of(pid: Pid) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().next());
    state.unwrap_or_default().to_owned()
}

/// Ctrl-C ends CMD and what it started, the shell sees a command killed by the signal, and the lock
/// is free.
#[test]
fn ctrl_c() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("$D run x sh -c 'sleep 1002; echo not reached'\n");
    let sleep = keyboard.waits_for("sleep 1002");
    let (foreground, group, _) = stat(sleep);
    assert_eq!(foreground, group, "CMD has the terminal");
    keyboard.press("\x03");
    keyboard.shows(PROMPT, 2);
    keyboard.press("echo status $?\n");
    keyboard.shows("status 130", 1);
    assert!(V1::connect(&daemon.tcp()).gets("x"));
    assert_eq!(keyboard.screen().matches("not reached").count(), 1, "only as it was typed");
}

/// Ctrl-C also ends a shell script that runs us.
#[test]
fn ctrl_c_ends_the_script_around_us() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("bash -c '$D run x sleep 1001; echo not reached'\n");
    keyboard.waits_for("sleep 1001");
    keyboard.press("\x03");
    keyboard.shows(PROMPT, 2);
    keyboard.press("echo status $?\n");
    keyboard.shows("status 130", 1);
    assert_eq!(keyboard.screen().matches("not reached").count(), 1, "only as it was typed");
}

/// Ctrl-Z stops the job, the shell continues, and the lock stays held; fg gives CMD the terminal
/// back.
#[test]
fn ctrl_z_and_fg() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("$D run x sh -c 'read line; echo got $line; exit 5'\n");
    let cat = keyboard.waits_for("sh -c read");
    keyboard.press("\x1a");
    keyboard.shows("Stopped", 1);
    eventually("CMD has stopped", || stat(cat).2 == "T");
    assert!(!V1::connect(&daemon.tcp()).gets("x"));
    keyboard.press("fg\n");
    eventually("CMD has the terminal", || stat(cat).0 == stat(cat).1);
    keyboard.press("a line\n");
    keyboard.shows("got a line", 1);
    keyboard.shows(PROMPT, 3);
    keyboard.press("echo status $?\n");
    keyboard.shows("status 5", 1);
}

/// In the background, CMD stops when it reads from the terminal, as every command does; `fg` lets
/// it read.
#[test]
fn in_the_background() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("$D run x sh -c 'read line; echo got $line' &\n");
    let reader = keyboard.waits_for("sh -c read");
    eventually("CMD has stopped", || stat(reader).2 == "T");
    let front = keyboard.waits_for(DISTRILOCK);
    eventually("the user's job has stopped", || state_of(front) == "T");
    keyboard.press("\n");
    keyboard.shows("Stopped", 1);
    keyboard.press("fg\n");
    eventually("CMD has the terminal", || stat(reader).0 == stat(reader).1);
    keyboard.press("a line\n");
    keyboard.shows("got a line", 1);
}

/// A pipeline keeps the terminal as a whole: its last command reads from it, and Ctrl-C reaches all
/// of its commands.
#[test]
fn in_a_pipeline() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard
        .press("$D run x sh -c 'echo from CMD; sleep 1001' | (read a < /dev/tty; read b; echo $a, $b; sleep 1002)\n");
    keyboard.waits_for("sleep 1001");
    keyboard.press("from the keyboard\n");
    keyboard.shows("from the keyboard, from CMD", 1);
    keyboard.waits_for("sleep 1002");
    keyboard.press("\x03");
    keyboard.shows(PROMPT, 2);
    eventually("CMD has ended", || keyboard.shell.tree.find("sleep 1001").is_none());
    assert!(V1::connect(&daemon.tcp()).gets("x"));
}

/// CMD in a pipeline that asks for the terminal gets it.
#[test]
fn the_terminal_on_demand() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("$D run x sh -c 'read a < /dev/tty; echo got $a' | cat\n");
    let reader = keyboard.waits_for("sh -c read");
    eventually("CMD has the terminal", || stat(reader).0 == stat(reader).1);
    keyboard.press("a line\n");
    keyboard.shows("got a line", 1);
    keyboard.shows(PROMPT, 2);
}

/// A self-erasing status line shows a wait, and who holds the lock. Ctrl-Z stops the wait, and
/// Ctrl-C ends it.
#[test]
fn a_wait_at_the_terminal() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let mut holder = V1::connect(&server);
    holder.request(serde_json::json!({"op": "hello", "version": 1, "name": "backup@db1"}));
    holder.acquire("x");
    let mut keyboard = Keyboard::with_shell(&server);
    keyboard.press("$D run x echo not yet\n");
    keyboard.shows("waiting for x: held by backup@db1 for", 1);
    keyboard.press("\x1a");
    keyboard.shows("Stopped", 1);
    // A lock that is granted while the job is stopped is kept, but CMD does not start.
    holder.release("x");
    let mut looks = V1::connect(&server);
    let held = |looks: &mut V1| looks.request(serde_json::json!({"op": "peek", "lock": "x"}))["locked"] == true;
    eventually("it is granted", || held(&mut looks));
    keyboard.press("fg\n");
    keyboard.shows("not yet\r\n", 2);
    keyboard.shows(PROMPT, 3);
    assert!(!held(&mut looks));

    holder.acquire("x");
    keyboard.press("$D run x echo never\n");
    eventually("it waits", || holder.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 1);
    keyboard.press("\x03");
    keyboard.shows(PROMPT, 4);
    keyboard.press("echo status $?\n");
    keyboard.shows("status 130", 1);
    eventually("nobody waits", || holder.request(serde_json::json!({"op": "peek", "lock": "x"}))["waiters"] == 0);
}

/// Every signal that is passed on reaches CMD, once each time it is sent.
#[test]
fn signals_are_passed_on() {
    let daemon = Daemon::start();
    let script = "for s in INT TERM HUP QUIT USR1 USR2 WINCH CONT TSTP; do trap \"echo $s\" $s; done; echo ready
        while :; do sleep 0.02; done";
    let running = Running::start(command(&daemon.tcp(), &["run", "x", "bash", "-c", script]));
    running.says("ready");
    for name in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT"] {
        running.signal(format!("SIG{name}").parse().unwrap());
        running.says(&format!("\n{name}\n"));
    }
    // bash catches TSTP, but waits for sleep, which does not catch it and stops. SIGCONT discards a
    // pending SIGTSTP (signal(7)), so both are sent until bash has handled one.
    eventually("CMD has heard of TSTP", || {
        let stopped = running.tree.find("sleep 0.02").is_some_and(|pid| state_of(pid) == "T");
        running.signal(if stopped { Signal::SIGCONT } else { Signal::SIGTSTP });
        running.out().contains("\nTSTP\n")
    });
    running.signal(Signal::SIGKILL);
    running.tree.goes();
}

/// CMD ignores the signals that were ignored when we started, as nohup(1) needs it, and has those
/// blocked that were blocked.
#[test]
fn what_is_ignored_stays_so() {
    let daemon = Daemon::start();
    let mut nohup = Command::new("sh");
    let script = "trap '' HUP; exec \"$D\" run x sh -c 'grep -E \"Sig(Blk|Ign)\" /proc/self/status; kill -HUP $$; echo alive; sleep 1001'";
    nohup.args(["-c", script]).env("D", DISTRILOCK).env("DISTRILOCK_SERVER", daemon.tcp());
    let running = Running::start(nohup);
    running.says("alive");
    let said = running.out();
    let bits = |name: &str| {
        let digits = said.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        // The bits above are real-time signals, which the C library uses.
        u64::from_str_radix(digits, 16).unwrap() & 0x7fff_ffff
    };
    assert_eq!((bits("SigBlk:"), bits("SigIgn:")), (0, 1), "{said}");
    running.signal(Signal::SIGHUP);
    running.tree.waits_for("sleep 1001");
    running.signal(Signal::SIGTERM);
    running.tree.goes();
}

/// `kill -STOP` for the process that the user started does not stop the guard: when the daemon
/// dies, CMD is still ended.
#[test]
fn a_stopped_launcher() {
    let mut daemon = Daemon::start();
    let mut running = Running::start(command(&daemon.tcp(), &["run", "x", "sleep", "1001"]));
    let sleep = running.tree.waits_for("sleep 1001");
    running.signal(Signal::SIGSTOP);
    daemon.kill();
    eventually("CMD has ended", || kill(sleep, None).is_err());
    running.signal(Signal::SIGCONT);
    assert_eq!(running.end().code(), 74);
}

/// A program that reads the terminal to its end (expect, script, a CI runner) sees the end when CMD
/// has ended, even though a process in the background still keeps the lock.
#[test]
fn the_terminal_ends() {
    let daemon = Daemon::start();
    let mut keyboard = Keyboard::with_shell(&daemon.tcp());
    keyboard.press("exec $D run x sh -c 'setsid sleep 1001 < /dev/null > /dev/null 2>&1 & echo started'\n");
    keyboard.shows("started", 2);
    eventually("the terminal ends", || keyboard.reader.is_finished());
    assert!(!V1::connect(&daemon.tcp()).gets("x"));
    let sleep = keyboard.waits_for("sleep 1001");
    kill(sleep, Signal::SIGKILL).unwrap();
    keyboard.shell.tree.goes();
}
