//! The command, `distrilock`, as a child process, and the process table: the descendants of the
//! command carry a mark in their environment, wherever they have gone.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{PATIENCE, default_for_children, eventually};

/// The binary that is tested.
pub(crate) const DISTRILOCK: &str = env!("CARGO_BIN_EXE_distrilock");

const MARK: &str = "DISTRILOCK_TEST_MARK";

/// The processes that carry one mark.
pub(crate) struct Tree {
    mark: String,
}

impl Tree {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self { mark: format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)) }
    }

    /// The living ones, with their command lines.
    pub(crate) fn processes(&self) -> Vec<(Pid, String)> {
        let entries = fs::read_dir("/proc").expect("there is a /proc");
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let ours = numbers.filter(|pid| self.carries(*pid)).map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (Pid::from_raw(pid), String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned())
        });
        ours.collect()
    }

    /// A zombie no longer has an environment.
    fn carries(&self, pid: i32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == format!("{MARK}={}", self.mark).as_bytes())
    }

    /// The process whose command line begins like this. (Later words of our own processes' command
    /// lines are those of CMD.)
    pub(crate) fn find(&self, beginning: &str) -> Option<Pid> {
        self.processes().into_iter().find(|(_, line)| line.starts_with(beginning)).map(|(pid, _)| pid)
    }

    /// Waits for such a process.
    #[track_caller]
    pub(crate) fn waits_for(&self, beginning: &str) -> Pid {
        let mut found = None;
        eventually(&format!("{beginning} runs"), || {
            found = self.find(beginning);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// The process that holds the lock.
    #[track_caller]
    pub(crate) fn guard(&self) -> Pid {
        self.waits_for("lock-guard run:guard ")
    }

    /// No process with the mark is left now.
    #[track_caller]
    pub(crate) fn assert_gone(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "processes are left: {left:?}");
    }

    /// No process is left other than our own.
    #[track_caller]
    pub(crate) fn assert_commands_gone(&self) {
        let left: Vec<_> = self
            .processes()
            .into_iter()
            .filter(|(_, line)| !line.contains("distrilock") && !line.starts_with("lock-guard "))
            .collect();
        assert!(left.is_empty(), "commands are left: {left:?}");
    }

    #[track_caller]
    pub(crate) fn goes(&self) {
        eventually("all processes end", || self.processes().is_empty());
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A failing test leaves nothing behind. All of these descend from the test.
        for (pid, _) in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// The command with these arguments, for this server; `distrilock` alone if the server is empty.
pub(crate) fn command(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(DISTRILOCK);
    command.args(arguments).stdin(Stdio::null());
    for name in ["LOCK", "SLOT", "FENCE", "TOKEN", "SESSION", "HELD", "GUARD", "FD", "SERVER"] {
        command.env_remove(format!("DISTRILOCK_{name}"));
    }
    if !server.is_empty() {
        command.env("DISTRILOCK_SERVER", server);
    }
    command
}

/// A running command, with its streams in files.
pub(crate) struct Running {
    child: Child,
    folder: TempDir,
    pub(crate) tree: Tree,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The exit status as a shell shows it, even after a signal.
    pub(crate) fn code(&self) -> i32 {
        number_of(self.status)
    }
}

/// The exit status as a shell shows it.
pub(crate) fn number_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().expect("it has exited or was killed"))
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        default_for_children();
        let (folder, tree) = (TempDir::new().expect("a folder"), Tree::new());
        let file = |name: &str| File::create(folder.path().join(name)).expect("a file");
        let child = command.env(MARK, &tree.mark).stdout(file("out")).stderr(file("err")).spawn().expect("it runs");
        Self { child, folder, tree }
    }

    /// Starts a program on a terminal.
    #[track_caller]
    pub(crate) fn on_terminal(mut command: Command, [input, output, errors]: [OwnedFd; 3]) -> Self {
        default_for_children();
        let (folder, tree) = (TempDir::new().expect("a folder"), Tree::new());
        command.env(MARK, &tree.mark).stdin(input).stdout(output).stderr(errors);
        let child = command.spawn().expect("it runs");
        Self { child, folder, tree }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it is our child");
    }

    /// Its output so far.
    pub(crate) fn out(&self) -> String {
        self.read("out")
    }

    pub(crate) fn err(&self) -> String {
        self.read("err")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).expect("it is there")).into_owned()
    }

    #[track_caller]
    pub(crate) fn says(&self, part: &str) {
        eventually(&format!("stdout has {part:?}; it has {:?}, stderr {:?}", self.out(), self.err()), || {
            self.out().contains(part)
        });
    }

    /// Waits for the end. The rest of the process tree can be examined afterwards.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Ended { status, out: self.out(), err: self.err() };
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}\n{}", self.tree.processes(), self.err());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command to its end; nothing of it may be left then.
#[track_caller]
pub(crate) fn ended(command: Command) -> Ended {
    let mut running = Running::start(command);
    let ended = running.end();
    running.tree.goes();
    ended
}
