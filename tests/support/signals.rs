//! Signals of the programs that tests start: default ones, however the tests themselves were
//! started.
//!
//! `nohup`, `&` in a script and some runners start the tests with signals ignored, and an ignored
//! signal stays ignored across execve(2). A caught one becomes default again, so this process
//! catches what it would ignore. It does nothing with it: for the tests, it is ignored as before.

use std::fs;
use std::sync::Once;

use nix::libc::{SIGPIPE, SIGTTIN, SIGTTOU};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// The standard library gives `SIGPIPE` its default in children. A background process that catches
/// the other two, rather than ignoring them, would try in vain to use its terminal, tcsetattr(3).
const LEFT_ALONE: [i32; 3] = [SIGPIPE, SIGTTIN, SIGTTOU];

/// The last signal before the real-time ones, signal(7).
const STANDARD_MAX: i32 = 31;

/// Call this before a program is started.
pub(crate) fn default_for_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").expect("there is a /proc");
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("proc_pid_status(5) has it");
        let ignored = u64::from_str_radix(ignored.trim(), 16).expect("it is hexadecimal");
        // In a thread of its own: a test's runtime does not let another one end on its threads.
        let caught = std::thread::spawn(move || catch(ignored));
        caught.join().expect("the signals are caught");
    });
}

fn catch(ignored: u64) {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    let _entered = runtime.enter();
    for number in (1..=STANDARD_MAX).filter(|number| ignored & (1 << (number - 1)) != 0) {
        if !LEFT_ALONE.contains(&number) {
            // tokio keeps the handler when this and the runtime have gone. It refuses SIGSEGV and
            // its like, which nobody ignores.
            let _ = signal(SignalKind::from_raw(number));
        }
    }
}
