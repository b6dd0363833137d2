//! The witness: a table of who has which lock, kept by this process, out of reach of every host and
//! daemon. Two sessions in one lock at once are an overlap. First it must catch a protocol that is
//! known to be wrong, and accept one that is right; both are made of plain file locks, without any
//! daemon.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hint;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::hosts::Server;
use crate::report::Report;
use crate::support::Dice;

/// The byte that keeps the server's lock owner alive between two locks.
pub(crate) const ANCHOR: i64 = 1 << 61;

#[derive(Default)]
pub(crate) struct Witness(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// The holders of each lock; more than one are an overlap.
    inside: HashMap<String, Vec<String>>,
    /// The host of the last grant of each lock.
    last: HashMap<String, String>,
    grants: u64,
    changes: u64,
    overlaps: Vec<String>,
}

impl Witness {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("nobody panics in the table")
    }

    /// A holder was granted a lock.
    pub(crate) fn enter(&self, lock: &str, host: &str, who: &str) {
        let table = &mut *self.table();
        let inside = table.inside.entry(lock.to_owned()).or_default();
        if !inside.is_empty() {
            table.overlaps.push(format!("{lock}: {who} while {inside:?}"));
        }
        inside.push(who.to_owned());
        table.grants += 1;
        let last = table.last.insert(lock.to_owned(), host.to_owned());
        table.changes += u64::from(last.is_some_and(|last| last != host));
    }

    /// A holder no longer believes that it has a lock.
    pub(crate) fn leave(&self, lock: &str, who: &str) {
        if let Some(inside) = self.table().inside.get_mut(lock) {
            inside.retain(|one| one != who);
        }
    }

    /// Enters, stays for 0 to 100 microseconds, and leaves.
    pub(crate) fn visit(&self, lock: &str, host: &str, who: &str, dice: &mut Dice) {
        self.enter(lock, host, who);
        spin(Duration::from_micros(dice.below(101)));
        self.leave(lock, who);
    }

    pub(crate) fn grants(&self) -> u64 {
        self.table().grants
    }

    /// Grants that followed a grant on another host.
    pub(crate) fn changes(&self) -> u64 {
        self.table().changes
    }

    pub(crate) fn overlaps(&self) -> Vec<String> {
        self.table().overlaps.clone()
    }

    /// The check that all of this is for.
    pub(crate) fn report(&self, report: &Report, grants_min: u64, start: Instant) {
        let overlaps = self.overlaps();
        let (grants, changes) = (self.grants(), self.changes());
        let seconds = start.elapsed().as_secs_f64();
        let first = overlaps.first().map(String::as_str).unwrap_or_default();
        let detail = format!(
            "{} overlaps in {grants} grants, {changes} from host to host, {seconds:.1} s {first}",
            overlaps.len()
        );
        report.check("no overlap", overlaps.is_empty() && grants >= grants_min, detail);
    }
}

pub(crate) fn spin(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        hint::spin_loop();
    }
}

fn flock(kind: i32, start: i64, length: i64) -> libc::flock {
    let kind = i16::try_from(kind).expect("lock types are small");
    libc::flock { l_type: kind, l_whence: 0, l_start: start, l_len: length, l_pid: 0 }
}

/// Tries a write lock on a range (length 0: to the end); returns whether it was granted.
pub(crate) fn try_lock(file: &File, start: i64, length: i64) -> io::Result<bool> {
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&flock(libc::F_WRLCK, start, length))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn unlock(file: &File, start: i64, length: i64) -> io::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&flock(libc::F_UNLCK, start, length)))?;
    Ok(())
}

/// Opens the file of a lock and anchors it.
pub(crate) fn anchored(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    anchor(&file)?;
    Ok(file)
}

pub(crate) fn anchor(file: &File) -> io::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, ANCHOR, 1)))?;
    Ok(())
}

pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// One try in the wrong order: a process that locks between the close and the unlink has a file
/// that loses its name.
fn unlock_close_unlink(path: &Path, visit: &mut dyn FnMut()) -> io::Result<()> {
    let file = open(path)?;
    if try_lock(&file, 0, 0)? {
        visit();
        unlock(&file, 0, 0)?;
        drop(file);
        fs::remove_file(path)?;
    }
    Ok(())
}

/// One try in the right order.
fn anchored_try(file: &File, visit: &mut dyn FnMut()) -> io::Result<()> {
    if try_lock(file, 0, ANCHOR)? {
        visit();
        unlock(file, 0, ANCHOR)?;
    }
    Ok(())
}

/// Three hosts fight by one protocol for one file, until there are enough grants, or overlaps.
fn fight(hosts: &[crate::hosts::Host], witness: &Witness, name: &str, grants: u64, anchor: bool) {
    let end = Instant::now() + Duration::from_secs(120);
    thread::scope(|scope| {
        for (seed, host) in (1..).zip(hosts.iter().chain(hosts)) {
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                let path = host.path(&format!("/mnt/{name}.lck"));
                let file = anchor.then(|| anchored(&path).expect("the first open"));
                let who = format!("{}-{seed}", host.name);
                while witness.grants() < grants && witness.overlaps().is_empty() && Instant::now() < end {
                    let mut visit = || witness.visit(name, &host.name, &who, &mut dice);
                    // The wrong protocol also fails now and then: a file is already gone, or stale.
                    let _ = match &file {
                        Some(file) => anchored_try(file, &mut visit),
                        None => unlock_close_unlink(&path, &mut visit),
                    };
                    thread::sleep(Duration::from_micros(dice.below(500)));
                }
            });
        }
    });
}

/// The original's protocol is caught at its first overlap; the anchored one has none.
pub(crate) fn catches_overlaps(server: &Server, report: &Report) {
    let hosts = server.hosts("witness", ["wa", "wb", "wc"]);
    let wrong = Witness::default();
    fight(&hosts, &wrong, "wrong", 20_000, false);
    let found = wrong.overlaps();
    let first = found.first().map(String::as_str).unwrap_or_default();
    let detail = format!("after {} grants: {first}", wrong.grants());
    report.check("catches unlock, close, unlink", !found.is_empty(), detail);
    let (right, start) = (Witness::default(), Instant::now());
    fight(&hosts, &right, "right", 1000, true);
    right.report(report, 1000, start);
}
