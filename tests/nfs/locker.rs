//! A process on a host that locks one file whenever it is told to, without a daemon. It opens the
//! file with the flag that daemons use, or plainly, as any other program would. A call that hangs
//! while the host is cut off hangs only there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use distrilock::files::mount::NO_DELEGATION;

use crate::hosts::Host;
use crate::support::PATIENCE;
use crate::witness::{ANCHOR, anchor, try_lock, unlock};

/// How the file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// As other programs open files.
    Plainly,
    /// With the daemon's flag.
    AsDaemonsDo,
}

impl Opened {
    fn word(self) -> &'static str {
        match self {
            Self::Plainly => "plainly",
            Self::AsDaemonsDo => "as-daemons-do",
        }
    }
}

/// The process itself. It answers each line, a word, with another one.
pub(crate) fn run(words: &[String]) -> bool {
    let [path, how] = words else { return false };
    let flags = if how == Opened::AsDaemonsDo.word() { NO_DELEGATION.bits() } else { 0 };
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    let opened = options.open(Path::new(path)).and_then(|file| anchor(&file).map(|()| file));
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            println!("failed: {error}");
            return false;
        }
    };
    println!("open");
    for line in io::stdin().lines().map_while(Result::ok) {
        let done = match &*line {
            "lock" => try_lock(&file, 0, ANCHOR).map(|granted| if granted { "granted" } else { "refused" }),
            _ => unlock(&file, 0, ANCHOR).map(|()| "unlocked"),
        };
        match done {
            Ok(word) => println!("{word}"),
            Err(error) => println!("failed: {error}"),
        }
    }
    true
}

/// The process, as the lab uses it.
pub(crate) struct Locker {
    child: Child,
    input: ChildStdin,
    words: Receiver<String>,
}

impl Locker {
    /// Starts it and waits until it has the file of a lock open, however long that takes.
    #[track_caller]
    pub(crate) fn start(host: &Host, lock: &str, opened: Opened) -> Self {
        let path = format!("/mnt/{lock}.lck");
        let mut command = host.command("/lab/payload");
        command.args(["locker", &path, opened.word()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("nsenter is there");
        let input = child.stdin.take().expect("it is a pipe");
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let (sender, words) = channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|word| sender.send(word)));
        let locker = Self { child, input, words };
        let word = locker.hears(PATIENCE);
        assert_eq!(word.as_deref(), Some("open"), "{lock} on {}", host.name);
        locker
    }

    /// Tells it to try the lock, and waits at most this long for its answer.
    pub(crate) fn tries(&mut self, patience: Duration) -> Option<String> {
        self.tell("lock");
        self.hears(patience)
    }

    /// The answer to what it was told before, if it comes within this time.
    pub(crate) fn hears(&self, patience: Duration) -> Option<String> {
        self.words.recv_timeout(patience).ok()
    }

    pub(crate) fn unlocks(&mut self) {
        self.tell("unlock");
        assert_eq!(self.hears(PATIENCE).as_deref(), Some("unlocked"));
    }

    /// Tries until the lock is granted.
    #[track_caller]
    pub(crate) fn eventually_locks(&mut self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let word = self.tries(2 * PATIENCE);
            if word.as_deref() == Some("granted") {
                return;
            }
            assert!(Instant::now() < deadline, "never granted: {word:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.input, "{word}").expect("it runs");
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        // It may wait for a cut link: nobody waits for it.
        let _ = self.child.kill();
    }
}
