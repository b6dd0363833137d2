//! Sessions continue in the next process, and what can go wrong on the way. [`Manager`] stands in
//! for the service manager.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::fs::File;
use std::io::ErrorKind;

use manager::Manager;
use nix::libc::F_WRLCK;
use support::{V1, eventually, lock_file};

fn connect(manager: &Manager) -> V1 {
    V1::connect(&manager.address())
}

/// Whether another process sees that the lock is free.
fn is_free(manager: &Manager, lock: &str) -> bool {
    match File::options().write(true).open(manager.locks().join(format!("{lock}.lck"))) {
        Ok(file) => lock_file(&file, F_WRLCK),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// The next process may not open as many descriptors as there are: then every session ends, every
/// lock is free, none stays held by nobody, and the process after that takes over normally.
#[test]
fn fewer_descriptors_than_before() {
    const SESSIONS: usize = 400;
    let mut manager = Manager::start();
    let lock = |number: usize| format!("lock{number}");
    let hold = |number: usize| {
        let mut session = connect(&manager);
        session.acquire(&lock(number));
        session
    };
    let sessions: Vec<V1> = (0..SESSIONS).map(hold).collect();
    manager.leave();
    manager.run("ulimit -n 200");
    for (number, mut session) in sessions.into_iter().enumerate() {
        assert!(session.closed().is_empty(), "session {number} ends");
        // Not at once: the new process locks unused files in order to delete them.
        eventually(&format!("the lock of session {number} is free"), || is_free(&manager, &lock(number)));
    }
    let mut session = connect(&manager);
    session.acquire("later");
    manager.leave();
    manager.run("");
    assert!(!is_free(&manager, "later"));
    session.release("later");
    manager.stop();
}
