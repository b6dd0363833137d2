//! What the doctor tries with locks of its own: whether two processes exclude each other, whether a
//! waiter is woken, and whether another host's daemon is excluded as well.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::finding::Finding;
use crate::directory::Directory;
use crate::files::{Files, OpenFile, trial_lock};
use distrilock_engine::{FileOp, Mode, Outcome};
use distrilock_protocol::name::LockName;

/// The helper's first argument: lock this file, print that, and exit when the input ends.
const WORD: &str = "--lock-and-tell";

/// How long each thing that the doctor tries may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// If a waiter takes longer to wake, that is worth a warning.
const WAKE_SLOW: Duration = Duration::from_secs(1);

/// If the doctor started this process as its helper, locks the file and returns the exit status.
pub(super) fn run_as_helper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let wait = arguments.next()? == "wait";
    let path = arguments.next()?;
    let answer = match trial_lock::lock(Path::new(&path), wait) {
        Ok(None) => "refused".to_owned(),
        Ok(Some(locked)) => {
            println!("locked");
            // Until the doctor closes the pipe, or dies.
            let _ = io::stdin().read_to_end(&mut Vec::new());
            drop(locked);
            return Some(ExitCode::SUCCESS);
        }
        Err(error) => format!("failed: {error}"),
    };
    println!("{answer}");
    Some(ExitCode::SUCCESS)
}

pub(super) fn examine(directory: &Directory, peer: Option<&str>, findings: &mut Vec<Finding>) {
    const WHY: &str = "without it, locks mean nothing here";
    let unique = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let name = format!("distrilock-doctor-{}", unique.trim());
    let path = directory.path.join(&name).with_extension("tmp");
    let both = exclusion(&path).and_then(|excluded| Ok((excluded, wake(&path)?)));
    // Nobody else knows the name.
    trial_lock::remove(&path);
    match both {
        Ok((excluded, woken_after)) => {
            findings.push(if excluded {
                Finding::ok("exclusion", WHY, "a second process is refused")
            } else {
                let remedy = "do not use this file system: its locks exclude nobody";
                Finding::wrong("exclusion", WHY, "a second process was granted the same lock", remedy)
            });
            findings.push(waking(woken_after));
        }
        Err(error) => {
            let remedy = "check the file system and its permissions, then run this again";
            findings.push(Finding::wrong("exclusion", WHY, format!("cannot be tested: {error}"), remedy));
        }
    }
    if let Some(peer) = peer {
        findings.push(with_peer(directory, peer, &name));
    }
}

fn waking(woken_after: Option<Duration>) -> Finding {
    const WHY: &str = "the file system wakes other programs that wait for a lock";
    let Some(after) = woken_after else {
        return Finding::warning("waking", WHY, "not at all", "mount it with vers=4.2; until then, daemons poll");
    };
    let found = format!("after {} ms", after.as_millis());
    if after < WAKE_SLOW {
        return Finding::ok("waking", WHY, found);
    }
    Finding::warning("waking", WHY, found, "mount it with vers=4.2, and let the server's callbacks through")
}

/// The helper process.
struct Helper {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Helper {
    fn start(how: &str, path: &Path) -> io::Result<Self> {
        let arguments = [OsStr::new(WORD), OsStr::new(how), path.as_os_str()];
        let mut child =
            Command::new("/proc/self/exe").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = child.stdout.take().map(BufReader::new).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, lines })
    }

    /// Reads the helper's answer: `locked` or `refused`.
    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        match line.trim() {
            "" => Err(io::Error::other("the second process did not answer")),
            failed if failed.starts_with("failed") => Err(io::Error::other(failed.to_owned())),
            answer => Ok(answer.to_owned()),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // This does not matter to a helper that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exclusion(path: &Path) -> io::Result<bool> {
    let held =
        trial_lock::lock(path, false)?.ok_or_else(|| io::Error::other("another process has locked a new file"))?;
    let refused = Helper::start("try", path)?.answer()? == "refused";
    drop(held);
    let granted = Helper::start("try", path)?.answer()? == "locked";
    Ok(refused && granted)
}

/// How long after the unlock a waiting process is woken, if it is woken.
fn wake(path: &Path) -> io::Result<Option<Duration>> {
    let held = trial_lock::lock(path, false)?.ok_or_else(|| io::Error::other("another process has locked the file"))?;
    let mut helper = Helper::start("wait", path)?;
    // By then the helper waits, or it takes the lock at once. It answers only when it has the
    // lock.
    std::thread::sleep(Duration::from_millis(200));
    let since = Instant::now();
    drop(held);
    let (send, received) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let process = nix::unistd::Pid::from_raw(i32::try_from(helper.child.id()).unwrap_or(i32::MAX));
        let helper = &mut helper;
        std::thread::Builder::new().spawn_scoped(scope, move || send.send(helper.answer()))?;
        match received.recv_timeout(PATIENCE) {
            Ok(answer) => Ok((answer? == "locked").then(|| since.elapsed())),
            Err(_) => {
                // The end of its output ends the thread that reads it.
                let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
                Ok(None)
            }
        }
    })
}

/// Whether another host's daemon is refused what this host has locked, and the reverse.
fn with_peer(directory: &Directory, peer: &str, name: &str) -> Finding {
    const WHY: &str = "it shows that both hosts use the same directory, and that locks reach the server";
    match try_with_peer(directory, peer, name) {
        Ok(None) => Finding::ok("peer", WHY, format!("{peer} and this host exclude each other")),
        Ok(Some(found)) => {
            let remedy = "compare the directories of both daemons (the first line of each one's log), and their mounts";
            Finding::wrong("peer", WHY, format!("{peer}: {found}"), remedy)
        }
        Err(error) => {
            let remedy = "check that a daemon listens there, at an address such as HOST:40800, and can be reached";
            Finding::wrong("peer", WHY, format!("{peer} cannot be asked: {error}"), remedy)
        }
    }
}

fn try_with_peer(directory: &Directory, peer: &str, name: &str) -> io::Result<Option<&'static str>> {
    let files = directory.files()?;
    let lock = LockName::parse(name.as_bytes()).expect("the doctor's own name is a lock name");
    let mut session = PeerSession::open(peer)?;
    let (file, outcome) = files.perform(&lock, FileOp::Try(Mode::Exclusive), None);
    if let Outcome::Failed(fault) = outcome {
        return Err(io::Error::other(fault));
    }
    let reply = session.ask(&json!({"op": "acquire", "lock": name}));
    retire(&files, &lock, file);
    if reply?["ok"] == true {
        return Ok(Some("its daemon was granted a lock that this host holds"));
    }
    let acquired = session.ask(&json!({"op": "acquire", "lock": name, "wait_ms": 10_000}))?;
    if acquired["ok"] != true {
        return Err(io::Error::other(format!("it does not grant a free lock: {acquired}")));
    }
    let (file, outcome) = files.perform(&lock, FileOp::Try(Mode::Exclusive), None);
    retire(&files, &lock, file);
    session.ask(&json!({"op": "release", "lock": name}))?;
    Ok((outcome == Outcome::Locked).then_some("this host was granted a lock that its daemon holds"))
}

/// Unlocks the file, and deletes it if nobody uses it.
fn retire(files: &Files, lock: &LockName, file: Option<OpenFile>) {
    if file.is_some() {
        drop(files.perform(lock, FileOp::Retire, file));
    }
}

/// A session with a daemon, one request at a time.
struct PeerSession(BufReader<TcpStream>);

impl PeerSession {
    /// The longest reply that is read.
    const REPLY_BYTES_MAX: u64 = 64 * 1024;

    fn open(peer: &str) -> io::Result<Self> {
        let peer = peer.strip_prefix("tcp://").unwrap_or(peer);
        let address = peer.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, request: &Value) -> io::Result<Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        let mut line = String::new();
        self.0.by_ref().take(Self::REPLY_BYTES_MAX).read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| io::Error::other("it does not speak the protocol"))
    }
}
