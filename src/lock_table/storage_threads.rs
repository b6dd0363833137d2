//! Threads that make calls on a network file system, which may take as long as the server does not answer. At most one call for
//! a name is under way (the engine's I4), and a bounded number in all: a hung server stalls what touches it, and nothing else.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Core;
use crate::clock::now_ms;
use crate::files::OpenFile;
use crate::limits::STORAGE_THREADS_MAX;
use distrilock_engine::{FileOp, Input};
use distrilock_protocol::name::LockName;

thread_local! {
    /// Whether this thread is a worker, which makes the calls that follow from its own by itself.
    static WORKER: Cell<bool> = const { Cell::new(false) };
}

/// A file operation to be carried out.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) shard: usize,
    pub(crate) name: LockName,
    pub(crate) op: FileOp,
    pub(crate) file: Option<OpenFile>,
}

/// The pool.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    line: Mutex<Line>,
    more: Condvar,
    idle: Condvar,
    /// Since when each name's operation is under way or in line.
    begun: Mutex<HashMap<LockName, u64>>,
}

#[derive(Debug, Default)]
struct Line {
    tasks: VecDeque<Task>,
    threads: usize,
    /// Threads that wait for a task.
    waiting: usize,
}

impl Workers {
    /// Whether the caller may make a call that blocks.
    pub(crate) fn is_worker() -> bool {
        WORKER.get()
    }

    /// Has a task carried out. It is in line until one of the threads is free.
    pub(crate) fn begin(&self, core: &Arc<Core>, task: Task) {
        self.note(&task.name);
        let mut line = locked(&self.line);
        line.tasks.push_back(task);
        if line.waiting >= line.tasks.len() {
            self.more.notify_one();
        } else if line.threads < STORAGE_THREADS_MAX {
            line.threads += 1;
            let number = line.threads;
            drop(line);
            let serving = Arc::clone(core);
            let started = std::thread::Builder::new().name(format!("storage-{number}")).spawn(move || serve(&serving));
            if started.is_err() {
                // Without a single thread nothing would ever be carried out, nor refused.
                let mut line = locked(&self.line);
                line.threads -= 1;
                assert!(line.threads > 0, "a thread can be started");
            }
        }
    }

    /// An operation of this name has begun.
    pub(crate) fn note(&self, name: &LockName) {
        locked(&self.begun).insert(name.clone(), now_ms());
    }

    /// It is complete.
    pub(crate) fn forget(&self, name: &LockName) {
        locked(&self.begun).remove(name);
    }

    /// The names whose operations have been under way for so long.
    pub(crate) fn stalled(&self, after_ms: u64) -> Vec<LockName> {
        let now_ms = now_ms();
        let begun = locked(&self.begun);
        begun
            .iter()
            .filter(|(_, since_ms)| now_ms.saturating_sub(**since_ms) >= after_ms)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Waits until nothing is under way, for `within` at most; tells whether that came about.
    pub(crate) fn rest(&self, within: std::time::Duration) -> bool {
        let line = locked(&self.line);
        let busy = |line: &mut Line| !line.tasks.is_empty() || line.waiting < line.threads;
        let waited = self.idle.wait_timeout_while(line, within, busy).unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    fn next(&self) -> Task {
        let mut line = locked(&self.line);
        line.waiting += 1;
        loop {
            if let Some(task) = line.tasks.pop_front() {
                line.waiting -= 1;
                return task;
            }
            self.idle.notify_all();
            line = self.more.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn serve(core: &Arc<Core>) {
    WORKER.set(true);
    let workers = core.workers.as_ref().expect("whoever starts a worker has the pool");
    loop {
        let Task { shard, name, op, file } = workers.next();
        let (file, outcome) = core.perform(&name, op, file);
        workers.forget(&name);
        core.carry_out(shard, Input::Done { name, file, outcome }, None);
    }
}

/// A panic aborts the daemon, so that a poisoned mutex is never met outside of tests.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
