//! [`StorageThreads`]: threads that make the calls that may take long. On a network file system,
//! any call takes as long as the server does not answer; on a local one, a fence waits for the disk
//! and for other processes, and a stamp for the disk. At most one call for a name is under way (the
//! engine's I4), and a bounded number in all: a hung server or disk stalls what touches it, and
//! nothing else.
//!
//! A thread is started when a task finds none that is free, so a daemon on a local file system that
//! is asked for neither fences nor stamps has none. The queue has at most one task for each name,
//! and sessions can only hold, and ask for, so many names.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::now_ms;
use crate::files::OpenFile;
use crate::limits::STORAGE_THREADS_MAX;
use crate::lock_table::shards::ShardIndex;
use crate::lock_table::{LockTable, Source};
use crate::sync::locked;
use distrilock_engine::FileOp;
use distrilock_protocol::name::LockName;

thread_local! {
    /// Whether this is one of the threads. It makes the calls that follow from its own calls
    /// itself.
    static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// A file operation to be carried out.
#[derive(Debug)]
pub(in crate::lock_table) struct Task {
    pub(in crate::lock_table) shard: ShardIndex,
    pub(in crate::lock_table) name: LockName,
    pub(in crate::lock_table) op: FileOp,
    pub(in crate::lock_table) file: Option<OpenFile>,
}

/// The pool.
#[derive(Debug, Default)]
pub(in crate::lock_table) struct StorageThreads {
    queue: Mutex<Queue>,
    more: Condvar,
    idle: Condvar,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// Since when each name's operation has been under way or in the queue.
    since_ms: HashMap<LockName, u64>,
    /// Whether somebody looks from time to time for operations that do not come back.
    is_watched: bool,
}

#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<Task>,
    threads: usize,
    /// Threads that wait for a task.
    waiting: usize,
}

impl StorageThreads {
    /// Whether the caller may make a call that blocks.
    pub(in crate::lock_table) fn is_current() -> bool {
        CURRENT.get()
    }

    /// Starts the first thread, where every call needs one: that comes before any session.
    pub(in crate::lock_table) fn start_first(&self, table: &Arc<LockTable>) -> std::io::Result<()> {
        locked(&self.queue).threads += 1;
        start(table, 1).inspect_err(|_| locked(&self.queue).threads -= 1)
    }

    /// Queues a task until one of the threads is free. Returns it if there is no thread at all, and
    /// none can be started: the caller has to carry it out, as nobody else ever would.
    pub(in crate::lock_table) fn enqueue(&self, table: &Arc<LockTable>, task: Task) -> Option<Task> {
        self.started(&task.name);
        let mut queue = locked(&self.queue);
        if queue.waiting <= queue.tasks.len() && queue.threads < STORAGE_THREADS_MAX {
            queue.threads += 1;
            let number = queue.threads;
            drop(queue);
            let started = start(table, number);
            queue = locked(&self.queue);
            // Those that run carry it out later.
            if started.is_err() {
                queue.threads -= 1;
                if queue.threads == 0 {
                    return Some(task);
                }
            }
        }
        queue.tasks.push_back(task);
        self.more.notify_one();
        None
    }

    /// An operation on this name has started.
    pub(in crate::lock_table) fn started(&self, name: &LockName) {
        locked(&self.under_way).since_ms.insert(name.clone(), now_ms());
    }

    /// The operation on this name is complete.
    pub(in crate::lock_table) fn completed(&self, name: &LockName) {
        locked(&self.under_way).since_ms.remove(name);
    }

    /// The caller is going to look for operations that do not come back, unless somebody does so
    /// already: then returns false.
    pub(super) fn begin_watch(&self) -> bool {
        !std::mem::replace(&mut locked(&self.under_way).is_watched, true)
    }

    /// Whether the one who looks has to go on: there is an operation under way.
    pub(super) fn continue_watch(&self) -> bool {
        let mut under_way = locked(&self.under_way);
        under_way.is_watched = !under_way.since_ms.is_empty();
        under_way.is_watched
    }

    /// The names whose operations have been under way for `after_ms` or longer.
    pub(super) fn stalled(&self, after_ms: u64) -> Vec<LockName> {
        let now_ms = now_ms();
        let under_way = locked(&self.under_way);
        under_way
            .since_ms
            .iter()
            .filter(|(_, since_ms)| now_ms.saturating_sub(**since_ms) >= after_ms)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Waits until nothing is under way, for `within` at most. Returns whether that came about.
    pub(super) fn rest(&self, within: Duration) -> bool {
        let queue = locked(&self.queue);
        let busy = |queue: &mut Queue| !queue.tasks.is_empty() || queue.waiting < queue.threads;
        let waited = self.idle.wait_timeout_while(queue, within, busy).unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    fn next(&self) -> Task {
        let mut queue = locked(&self.queue);
        queue.waiting += 1;
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                queue.waiting -= 1;
                return task;
            }
            self.idle.notify_all();
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn start(table: &Arc<LockTable>, number: usize) -> std::io::Result<()> {
    let table = Arc::clone(table);
    std::thread::Builder::new().name(format!("storage-{number}")).spawn(move || serve(&table)).map(drop)
}

fn serve(table: &Arc<LockTable>) {
    CURRENT.set(true);
    let threads = &table.storage.threads;
    loop {
        let task = threads.next();
        let shard = task.shard;
        let done = table.complete(task);
        table.submit_to_shard(shard, done, Source::Daemon);
    }
}
