//! [`SessionThreads`]: the threads that serve connections. Each connection stays on one of them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::runtime::{Builder, Handle, Runtime};

use super::connection::{Connection, Ended, Farewell};
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

    /// Serves a connection, once it is established, in the thread that has the fewest. If the next
    /// process is to continue it, it is kept for it.
    pub(super) fn spawn(self: &Arc<Self>, establishing: impl Future<Output = Option<Connection>> + Send + 'static) {
        let fewest = (0..self.threads.len()).min_by_key(|at| self.threads[*at].connections.load(Ordering::Relaxed));
        let place = fewest.expect("there is at least one thread");
        self.threads[place].connections.fetch_add(1, Ordering::Relaxed);
        let stage = Stage::Establishing(Box::pin(establishing));
        self.threads[place].runtime.spawn(ConnectionTask { threads: Arc::clone(self), place, stage });
    }
}

/// The task of a connection. It lives as long as the connection and is most of what an idle one
/// costs, so it is written by hand: an async function would keep room for its arguments, and for
/// all that it awaits at any time. What is rare has a box of its own.
struct ConnectionTask {
    threads: Arc<SessionThreads>,
    place: usize,
    stage: Stage,
}

#[expect(clippy::large_enum_variant, reason = "the large one is what lasts")]
enum Stage {
    /// It is not a session yet.
    Establishing(Pin<Box<dyn Future<Output = Option<Connection>> + Send>>),
    Serving(Connection),
    /// The session is over, and releases what it has.
    Leaving(Box<(Connection, Ended)>),
    /// Its last bytes are on their way.
    Farewell(Farewell),
    Over,
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.poll_stages(cx);
        self.threads.turns.threads()[self.place].next();
        polled
    }
}

impl ConnectionTask {
    fn poll_stages(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = match &mut self.stage {
                Stage::Establishing(connection) => {
                    ready!(connection.as_mut().poll(cx)).map_or(Stage::Over, Stage::Serving)
                }
                Stage::Serving(connection) => {
                    let ended = ready!(connection.poll_end(cx));
                    self.end(ended)
                }
                Stage::Leaving(leaving) => {
                    ready!(leaving.0.poll_leave(cx));
                    self.part()
                }
                Stage::Farewell(farewell) => {
                    ready!(farewell.as_mut().poll(cx));
                    Stage::Over
                }
                Stage::Over => {
                    self.threads.threads[self.place].connections.fetch_sub(1, Ordering::Relaxed);
                    return Poll::Ready(());
                }
            };
            self.stage = next;
        }
    }

    /// The connection has ended.
    fn end(&mut self, ended: Ended) -> Stage {
        let Stage::Serving(connection) = std::mem::replace(&mut self.stage, Stage::Over) else {
            unreachable!("only a connection that is served ends")
        };
        if !matches!(ended, Ended::HandedOver) {
            return Stage::Leaving(Box::new((connection, ended)));
        }
        locked(&self.threads.frozen).extend(connection.freeze());
        Stage::Over
    }

    /// The session has left.
    fn part(&mut self) -> Stage {
        let Stage::Leaving(leaving) = std::mem::replace(&mut self.stage, Stage::Over) else {
            unreachable!("only a session that leaves has left")
        };
        let (connection, ended) = *leaving;
        connection.part(&ended).map_or(Stage::Over, Stage::Farewell)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection's task stays small. The benchmark `load` measures what a session costs.
    #[test]
    fn sizes() {
        let size = size_of::<ConnectionTask>();
        assert!(size <= 576, "the task has grown to {size} bytes");
    }
}
