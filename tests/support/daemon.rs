//! The daemon as a child process. It starts with a notification socket of the test's own, so that
//! READY=1 replaces guesses at how long a start takes, and is killed when the test ends.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use super::{PATIENCE, default_for_children, eventually};

/// The binary that is tested.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_distrilockd");

/// Lines that a thread collects during the test, each with the time of its arrival.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Instant, String)>>>);

impl Lines {
    fn push(&self, line: &str) {
        self.0.lock().expect("no collector panics").push((Instant::now(), line.to_owned()));
    }

    fn all(&self) -> Vec<(Instant, String)> {
        self.0.lock().expect("no collector panics").clone()
    }

    fn texts(&self) -> Vec<String> {
        self.all().into_iter().map(|(_, line)| line).collect()
    }

    fn collect_from(&self, source: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                lines.push(String::from_utf8_lossy(&line).trim_end());
                line.clear();
            }
        })
    }
}

/// How to start a daemon. By default it listens on both fronts of 127.0.0.1, on free ports, over a
/// fresh directory.
pub(crate) struct Setup {
    directory: Option<PathBuf>,
    listeners: Option<Vec<(String, String)>>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    script: Vec<String>,
    passed: Vec<OwnedFd>,
    unprivileged: bool,
}

impl Setup {
    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Adds `--tcp ADDRESS`. Any listener named here replaces the two default ones.
    pub(crate) fn tcp(self, address: &str) -> Self {
        self.listen("tcp", address)
    }

    pub(crate) fn ws(self, address: &str) -> Self {
        self.listen("ws", address)
    }

    fn listen(mut self, front: &str, address: &str) -> Self {
        let listener = (front.to_owned(), address.to_owned());
        self.listeners.get_or_insert_default().push(listener);
        self
    }

    pub(crate) fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A line of shell that runs in the daemon's process before the daemon does.
    pub(crate) fn script(mut self, line: &str) -> Self {
        self.script.push(line.to_owned());
        self
    }

    /// Passes one or two sockets as systemd does, as descriptors 3 and 4, with `names` (`tcp:ws`)
    /// if there are any. They travel as standard input and output, because std opens no other
    /// descriptors in a child. Only the child's shell knows LISTEN_PID.
    pub(crate) fn passed(mut self, names: Option<&str>, sockets: Vec<OwnedFd>) -> Self {
        assert!(matches!(sockets.len(), 1 | 2), "one or two sockets can be passed");
        let mv = if sockets.len() == 1 { "exec 3<&0" } else { "exec 3<&0 4<&1" };
        self.script.push(format!("{mv} 0</dev/null 1>/dev/null"));
        self.script.push("export LISTEN_PID=$$".to_owned());
        self = self.environment("LISTEN_FDS", &sockets.len().to_string());
        if let Some(names) = names {
            self = self.environment("LISTEN_FDNAMES", names);
        }
        self.listeners.get_or_insert_default();
        self.passed = sockets;
        self
    }

    /// Runs the daemon as a user to whom file permissions apply: as nobody if the tests run as
    /// root, otherwise as the user who runs them.
    pub(crate) fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Starts the daemon and waits for its READY=1.
    #[track_caller]
    pub(crate) fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while !daemon.notices().iter().any(|notice| notice == "READY=1") {
            if let Some(status) = daemon.child.try_wait().expect("the daemon is our child") {
                panic!("the daemon ended ({status}) before it was ready\n{}", daemon.said());
            }
            assert!(Instant::now() < deadline, "no READY=1\n{}", daemon.said());
            thread::sleep(Duration::from_millis(1));
        }
        let expected = daemon.listeners;
        eventually("the daemon prints each address", || daemon.stdout.all().len() >= expected);
        daemon
    }

    /// Starts a daemon that should refuse to start; waits for its end and returns its log.
    #[track_caller]
    pub(crate) fn start_refused(self) -> String {
        let mut daemon = self.spawn();
        let status = daemon.wait();
        daemon.stderr_reader.take().expect("nobody else waits for it").join().expect("the reader does not panic");
        assert!(!status.success(), "the start was not refused\n{}", daemon.said());
        assert_eq!(status.code().map(|_| ()), Some(()), "a crash, not a refusal\n{}", daemon.said());
        assert!(!daemon.notices().contains(&"READY=1".to_owned()), "ready before it refused");
        daemon.log().join("\n")
    }

    fn spawn(mut self) -> Daemon {
        default_for_children();
        let scratch = TempDir::new().expect("a place for the notification socket");
        let directory = self.directory.take().unwrap_or_else(|| scratch.path().join("locks"));
        if directory.starts_with(&scratch) {
            fs::create_dir(&directory).expect("a fresh lock directory");
        }
        let (notices, stdout, stderr) = (Lines::default(), Lines::default(), Lines::default());
        let socket = scratch.path().join("notify");
        let notify = UnixDatagram::bind(&socket).expect("a notification socket");
        collect_notices(notify, notices.clone());

        let listeners = self
            .listeners
            .take()
            .unwrap_or_else(|| ["tcp", "ws"].map(|front| (front.to_owned(), "127.0.0.1:0".to_owned())).to_vec());
        let mut command = self.command(scratch.path(), &directory);
        for (front, address) in &listeners {
            command.arg(format!("--{front}")).arg(address);
        }
        command.args(&self.flags).env("NOTIFY_SOCKET", &socket).stderr(Stdio::piped());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut passed = self.passed.drain(..);
        if let Some(first) = passed.next() {
            command.stdin(first);
        }
        if let Some(second) = passed.next() {
            command.stdout(second);
        }
        drop(passed);
        command.envs(self.environment);

        let mut child = command.spawn().expect("the daemon can be run");
        let stderr_reader = Some(stderr.collect_from(child.stderr.take().expect("its stderr is a pipe")));
        if let Some(output) = child.stdout.take() {
            stdout.collect_from(output);
        }
        Daemon { child, directory, notices, stdout, stderr, stderr_reader, listeners: listeners.len(), scratch }
    }

    /// The program with its directory: plain, or in a shell that runs the script first.
    fn command(&mut self, scratch: &Path, directory: &Path) -> Command {
        let mut program = vec![OsString::from(BINARY)];
        if self.unprivileged && Uid::effective().is_root() {
            // The user nobody can reach neither the build directory nor the notification socket.
            let copy = scratch.join("distrilockd");
            // Uses cp(1): a file that this process has open for writing cannot be run (ETXTBSY),
            // and a thread that forks at that moment would keep it open.
            let copied = Command::new("cp").arg(BINARY).arg(&copy).status().expect("cp runs");
            assert!(copied.success(), "a copy of the binary");
            fs::set_permissions(scratch, Permissions::from_mode(0o755)).expect("our own directory");
            fs::set_permissions(scratch.join("notify"), Permissions::from_mode(0o777)).expect("our own socket");
            let owner = fs::metadata(directory).expect("the lock directory").uid();
            if directory.starts_with(scratch) && owner == 0 {
                std::os::unix::fs::chown(directory, Some(65534), Some(65534)).expect("root may");
            }
            program = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(OsString::from).to_vec();
            program.push(copy.into());
        }
        let mut words = Vec::new();
        if !self.script.is_empty() {
            self.script.push("exec \"$0\" \"$@\"".to_owned());
            words.extend([OsString::from("sh"), "-c".into(), self.script.join("\n").into()]);
        }
        words.extend(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("-d").arg(directory);
        command.env_remove("LISTEN_FDS").env_remove("WATCHDOG_USEC").env_remove("JOURNAL_STREAM");
        command
    }
}

fn collect_notices(socket: UnixDatagram, lines: Lines) {
    thread::spawn(move || {
        let mut datagram = [0; 4096];
        // The test sends an empty datagram when the daemon has gone.
        while let Ok(count @ 1..) = socket.recv(&mut datagram) {
            for line in String::from_utf8_lossy(&datagram[..count]).lines() {
                lines.push(line);
            }
        }
    });
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    directory: PathBuf,
    notices: Lines,
    stdout: Lines,
    stderr: Lines,
    stderr_reader: Option<JoinHandle<()>>,
    listeners: usize,
    scratch: TempDir,
}

impl Daemon {
    pub(crate) fn setup() -> Setup {
        Setup {
            directory: None,
            listeners: None,
            flags: Vec::new(),
            environment: Vec::new(),
            script: Vec::new(),
            passed: Vec::new(),
            unprivileged: false,
        }
    }

    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::setup().start()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a lock.
    pub(crate) fn file(&self, lock: &str) -> PathBuf {
        self.directory.join(format!("{lock}.lck"))
    }

    /// The address of the first TCP or Unix listener.
    #[track_caller]
    pub(crate) fn tcp(&self) -> String {
        self.addresses("tcp").swap_remove(0)
    }

    #[track_caller]
    pub(crate) fn ws(&self) -> String {
        self.addresses("ws").swap_remove(0)
    }

    /// All addresses that the daemon printed for one front, in its order.
    #[track_caller]
    pub(crate) fn addresses(&self, front: &str) -> Vec<String> {
        let lines = self.stdout.texts();
        let of_front = lines.iter().filter_map(|line| line.strip_prefix(front)?.strip_prefix(' '));
        let addresses: Vec<String> = of_front.map(str::to_owned).collect();
        assert!(!addresses.is_empty(), "no {front} address\n{}", self.said());
        addresses
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its messages to the notification socket, line by line.
    pub(crate) fn notices(&self) -> Vec<String> {
        self.notices.texts()
    }

    /// The same, with the times of arrival.
    pub(crate) fn timed_notices(&self) -> Vec<(Instant, String)> {
        self.notices.all()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.stderr.texts()
    }

    /// All output of the daemon, for the message of a panic.
    pub(crate) fn said(&self) -> String {
        let part = |title: &str, lines: &Lines| format!("--- {title}\n{}\n", lines.texts().join("\n"));
        part("log", &self.stderr) + &part("stdout", &self.stdout) + &part("notices", &self.notices)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon is our child");
    }

    /// Sends SIGKILL and waits for the end of the process; its locks are free when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the daemon is our child");
        self.child.wait().expect("the daemon is our child");
    }

    /// Sends SIGTERM and waits for the end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the daemon is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end\n{}", self.said());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        let status = self.child.try_wait().expect("the daemon is our child");
        assert!(status.is_none(), "the daemon ended: {status:?}\n{}", self.said());
    }

    /// Resident memory (`VmRSS` of proc_pid_status(5)).
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib * 1024
    }

    /// Processor time used so far: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it lives");
        let (_, fields) = stat.rsplit_once(')').expect("the name ends in a parenthesis");
        let ticks = |field: usize| -> u64 {
            fields.split_whitespace().nth(field - 3).expect("the field").parse().expect("ticks")
        };
        Duration::from_millis((ticks(14) + ticks(15)) * 10)
    }

    /// Waits until the daemon uses less than 2 % of a core over a second.
    #[track_caller]
    pub(crate) fn becomes_idle(&self) {
        eventually("the daemon is idle", || {
            let before = self.cpu();
            thread::sleep(Duration::from_secs(1));
            self.cpu() - before <= Duration::from_millis(20)
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // This fails if the daemon has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Ok(end) = UnixDatagram::unbound() {
            let _ = end.send_to(&[], self.scratch.path().join("notify"));
        }
        if thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}
