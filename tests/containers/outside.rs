//! Outside the daemon: a witness to which clients report the locks that they have, and a prober
//! that checks the lock files as another process does. A lock that a client holds must never be
//! seen free, and nobody may be granted a lock that its holder has not begun to release.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::guest::DIRECTORY;
use crate::support::eventually;

/// The maximum of findings in words; the rest is counted.
const WORDS_MAX: usize = 20;

/// The pause between two rounds, so that the prober leaves the processor to the others.
const ROUND_PAUSE: Duration = Duration::from_micros(500);

/// Who has which lock.
#[derive(Default)]
pub(crate) struct Witness {
    names: Vec<Name>,
    tickets: AtomicU64,
    offences: Mutex<Vec<String>>,
    offended: AtomicU64,
    looks: AtomicU64,
}

struct Name {
    lock: String,
    /// The ticket of the current grant, or 0.
    holder: AtomicU64,
}

impl Witness {
    pub(crate) fn new(locks: impl IntoIterator<Item = String>) -> Self {
        let names = locks.into_iter().map(|lock| Name { lock, holder: AtomicU64::new(0) }).collect();
        Self { names, ..Self::default() }
    }

    pub(crate) fn lock(&self, index: usize) -> &str {
        &self.names[index].lock
    }

    /// A client has received its grant.
    pub(crate) fn enters(&self, index: usize) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed) + 1;
        let other = self.names[index].holder.swap(ticket, Ordering::SeqCst);
        if other != 0 {
            self.offends(format!("{}: granted while grant {other} is in it", self.names[index].lock));
        }
        ticket
    }

    /// A client is about to release what it has, or to end its session.
    pub(crate) fn leaves(&self, index: usize, ticket: u64) {
        let holder = &self.names[index].holder;
        if holder.compare_exchange(ticket, 0, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.offends(format!("{}: grant {ticket} is not in it any more", self.names[index].lock));
        }
    }

    pub(crate) fn grants(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    fn offends(&self, what: String) {
        self.offended.fetch_add(1, Ordering::Relaxed);
        let mut offences = self.offences.lock().expect("nobody panics with it");
        if offences.len() < WORDS_MAX {
            offences.push(what);
        }
    }

    /// The number of errors, and their descriptions.
    pub(crate) fn offences(&self) -> (u64, String) {
        let words = self.offences.lock().expect("nobody panics with it").join("; ");
        (self.offended.load(Ordering::Relaxed), words)
    }

    /// Checks every file again and again until told to stop.
    pub(crate) fn probe(&self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            self.look_around();
            thread::sleep(ROUND_PAUSE);
        }
    }

    /// Checks every file once.
    pub(crate) fn look_around(&self) {
        self.names.iter().for_each(|name| self.look(name));
    }

    /// How often a lock was checked that was held before and after the check, by the same grant.
    pub(crate) fn seen(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn look(&self, name: &Name) {
        let before = name.holder.load(Ordering::SeqCst);
        if before == 0 {
            return;
        }
        let free = is_free(&name.lock);
        // A grant that is the same before and after was there at the time of the check.
        if name.holder.load(Ordering::SeqCst) != before {
            return;
        }
        self.looks.fetch_add(1, Ordering::Relaxed);
        if free {
            self.offends(format!("{}: seen free while grant {before} is in it", name.lock));
        }
    }
}

/// Whether another process could lock the file of a lock now. This asks without locking
/// (F_OFD_GETLK).
pub(crate) fn is_free(lock: &str) -> bool {
    is_free_in(DIRECTORY, lock)
}

/// Waits until the lock is free.
#[track_caller]
pub(crate) fn eventually_free(lock: &str) {
    eventually(&format!("{lock} comes free"), || is_free(lock));
}

pub(crate) fn is_free_in(directory: &str, lock: &str) -> bool {
    let file = match File::options().read(true).write(true).open(format!("{directory}/{lock}.lck")) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return true,
        Err(error) => panic!("{lock}: {error}"),
    };
    let mut wanted = libc::flock {
        l_type: libc::F_WRLCK.try_into().expect("a small number"),
        l_whence: libc::SEEK_SET.try_into().expect("a small number"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut wanted)).expect("the kernel knows OFD locks");
    i32::from(wanted.l_type) == libc::F_UNLCK
}

/// The lock files of the package's directory.
pub(crate) fn lock_files() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).map(|entries| entries.filter_map(Result::ok).collect()).unwrap_or_default();
    let entries: Vec<fs::DirEntry> = entries;
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".lck")).collect()
}
