//! [`SessionThreads`]: the threads that serve connections. Each connection stays on one of them.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::{Builder, Handle, Runtime};

use super::hand_over::Frozen;
use super::write_batch;
use crate::lock_table::turns::{self, Turns};
use crate::sync::locked;

/// How many tasks a thread runs before it looks for new events: a batch of a thousand requests
/// stays whole.
const EVENT_INTERVAL: u32 = 1000;

/// The threads that serve connections, and the connections that they no longer serve.
#[derive(Debug)]
pub struct SessionThreads {
    threads: Box<[SessionThread]>,
    /// Connections on their way to the next process of the daemon.
    frozen: Mutex<Vec<Frozen>>,
    turns: Arc<Turns>,
}

#[derive(Debug)]
struct SessionThread {
    runtime: Handle,
    connections: AtomicUsize,
}

impl SessionThreads {
    /// Starts a thread for each of these `turns`.
    ///
    /// # Errors
    /// If the system refuses one.
    pub fn start(turns: Arc<Turns>) -> io::Result<Self> {
        let threads = (0..turns.threads().len()).map(SessionThread::start).collect::<io::Result<_>>()?;
        Ok(Self { threads, frozen: Mutex::default(), turns })
    }

    /// Each thread's runtime.
    pub fn runtimes(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|thread| &thread.runtime)
    }

    /// How many connections are served, including those that are not a session yet, or no longer.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.threads.iter().map(|thread| thread.connections.load(Ordering::Relaxed)).sum()
    }

    /// How many connections are on their way to the next process.
    #[must_use]
    pub fn frozen(&self) -> usize {
        locked(&self.frozen).len()
    }

    /// Takes the connections that are on their way to the next process.
    #[must_use]
    pub fn take_frozen(&self) -> Vec<Frozen> {
        std::mem::take(&mut *locked(&self.frozen))
    }

    /// Serves a connection in the thread that has the fewest. If it comes back, it goes to the next
    /// process.
    pub(super) fn spawn(self: &Arc<Self>, connection: impl Future<Output = Option<Frozen>> + Send + 'static) {
        let fewest = (0..self.threads.len()).min_by_key(|at| self.threads[*at].connections.load(Ordering::Relaxed));
        let place = fewest.expect("there is at least one thread");
        self.threads[place].connections.fetch_add(1, Ordering::Relaxed);
        let threads = Arc::clone(self);
        self.threads[place].runtime.spawn(async move {
            let mut connection = pin!(connection);
            let turn = &threads.turns.threads()[place];
            let served = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                turn.next();
                polled
            });
            if let Some(frozen) = served.await {
                locked(&threads.frozen).push(frozen);
            }
            threads.threads[place].connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl SessionThread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime: Runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .on_thread_park(write_batch::end)
            .on_thread_unpark(turns::begin)
            .build()?;
        let handle = runtime.handle().clone();
        let name = format!("sessions-{number}");
        std::thread::Builder::new().name(name).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self { runtime: handle, connections: AtomicUsize::new(0) })
    }
}
