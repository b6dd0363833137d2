//! Default signals for the programs that tests start, however the tests themselves were started.
//!
//! `nohup`, `&` in a script and some runners start the tests with signals ignored, and an ignored
//! signal stays ignored across execve(2). A caught signal becomes default again, so this process
//! catches those that it ignores. It does nothing when they arrive: for the tests themselves, they
//! are ignored as before.

use std::fs;
use std::sync::Once;

use nix::libc::{SIGPIPE, SIGTTIN, SIGTTOU};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// The standard library resets `SIGPIPE` in children. A background process that catches the other
/// two instead of ignoring them could not use its terminal, tcsetattr(3).
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
        // In a thread of its own: a runtime cannot be dropped on the threads of a test's runtime.
        let caught = std::thread::spawn(move || catch(ignored));
        caught.join().expect("the signals are caught");
    });
}

fn catch(ignored: u64) {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    let _entered = runtime.enter();
    for number in (1..=STANDARD_MAX).filter(|number| ignored & (1 << (number - 1)) != 0) {
        if !LEFT_ALONE.contains(&number) {
            // tokio keeps the handler after this and the runtime are gone. It refuses SIGSEGV and
            // the like, which nobody ignores.
            let _ = signal(SignalKind::from_raw(number));
        }
    }
}
