//! Shared by the tests of the real binary: the daemon as a child process, a client for each of its
//! dialects, and waiting for a condition. Nothing here knows the daemon's code; it speaks to it
//! from outside.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this module")]

mod clients;
mod command;
mod daemon;
mod signals;

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{SEEK_SET, flock};

pub(crate) use clients::{GOB_REPLY_TYPES, GOB_REQUEST_TYPE, Gob, V1, Ws, connect, frame, gob_request, http, reset};
pub(crate) use command::{DISTRILOCK, Ended, Running, Tree, command, ended, number_of};
pub(crate) use daemon::{BINARY, Daemon, Setup};
pub(crate) use signals::default_for_children;

/// How long a test waits for what must happen. It is generous, since a loaded machine must not fail
/// a test; no test is right or wrong by how much of it passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `condition` until it holds, and panics with `what` if it does not within [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Locks (`F_WRLCK`) or unlocks a whole file as a program other than a daemon does
/// (fcntl_locking(2)); returns whether that was possible.
pub(crate) fn lock_file(file: &File, kind: i32) -> bool {
    let small = |number: i32| i16::try_from(number).expect("a small number");
    let all = flock { l_type: small(kind), l_whence: small(SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_SETLK(&all)).is_ok()
}

/// The names in a lock directory, sorted, without the daemons' own folder.
pub(crate) fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the lock directory can be read");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".distrilock")
        .collect();
    names.sort();
    names
}

/// The client in this language at the end of docs/protocol.md; there is exactly one for each
/// language.
pub(crate) fn client_of_the_manual(language: &str) -> String {
    const PROTOCOL: &str = include_str!("../../docs/protocol.md");
    let fence = format!("\n```{language}\n");
    assert_eq!(PROTOCOL.matches(&fence).count(), 1, "one client in {language}");
    let (_, rest) = PROTOCOL.split_once(&fence).expect("it is there");
    let (program, _) = rest.split_once("\n```\n").expect("a block ends");
    format!("{program}\n")
}

/// A small generator of numbers (xorshift64*, Vigna 2016). Tests with random choices can be
/// repeated from their seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll().to_be_bytes()[0]).collect()
    }
}
