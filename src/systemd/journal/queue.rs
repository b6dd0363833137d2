//! Events on their way to journald: the thread that logs copies an event into a bounded queue, and
//! one thread hands the copies to `tracing-journald`, whose socket blocks.
//!
//! ```text
//! any thread -- push --> [ event, 3 dropped, event ] -- next --> thread "journal" --> journald
//! ```
//!
//! Order is kept. The queue is bounded by bytes; when it is full, new events are dropped, and their
//! number is logged in their place. At the end of the process [`Flush`] waits a moment until the
//! queue is empty: that takes microseconds, and a journald that does not read must not delay a
//! restart.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber, dispatcher};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::sync::locked;

/// The name by which `journalctl -t` finds the daemon.
const IDENTIFIER: &str = "distrilockd";

/// How much the queue holds: some thousands of events, so that a journald that restarts loses none.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// What an event costs in addition to its values, including its place in the queue.
const EVENT_BYTES: usize = 256;

/// How long [`Flush`] waits for journald.
const FLUSH_MAX: Duration = Duration::from_millis(250);

/// As many fields as a copied event carries; no event of the daemon has half as many.
const FIELDS_MAX: usize = 32;

/// Starts the thread that sends to journald the events that pass the filter.
pub(super) fn start(filter: Targets) -> io::Result<(Queue, Flush)> {
    let shared = Arc::new(Shared::default());
    let ours = Arc::clone(&shared);
    thread::Builder::new().name("journal".into()).spawn(move || send(&ours, &filter, journald))?;
    Ok((Queue(Arc::clone(&shared)), Flush(shared)))
}

/// The layer that queues events.
pub(super) struct Queue(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Queue {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        self.0.push(Copied::of(event));
    }
}

/// Dropping this waits until the queue is empty, for [`FLUSH_MAX`] at most.
pub(super) struct Flush(Arc<Shared>);

impl fmt::Debug for Flush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flush")
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.0.wait_until_empty(FLUSH_MAX);
    }
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when something is queued.
    arrived: Condvar,
    /// Notified when everything has been sent.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    /// The sizes of `entries` and of what is being sent.
    bytes: usize,
}

enum Entry {
    Event(Copied),
    /// Here, this many events found the queue full.
    Dropped(u64),
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.bytes,
            Self::Dropped(_) => EVENT_BYTES,
        }
    }
}

impl Shared {
    /// Never waits for journald.
    fn push(&self, event: Copied) {
        let mut state = locked(&self.state);
        if state.bytes + event.bytes <= QUEUE_BYTES_MAX {
            state.push(Entry::Event(event));
        } else if let Some(Entry::Dropped(count)) = state.entries.back_mut() {
            *count += 1;
        } else {
            // No two of these are neighbours, so the queue exceeds its maximum by one of them at
            // most.
            state.push(Entry::Dropped(1));
        }
        self.arrived.notify_one();
    }

    /// Waits for the next entry. It counts as queued until it is [`sent`](Self::sent).
    fn next(&self) -> Entry {
        let mut state = locked(&self.state);
        loop {
            if let Some(entry) = state.entries.pop_front() {
                return entry;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives back the room of an entry.
    fn sent(&self, entry: &Entry) {
        let mut state = locked(&self.state);
        state.bytes -= entry.bytes();
        if state.bytes == 0 {
            self.emptied.notify_all();
        }
    }

    fn wait_until_empty(&self, timeout: Duration) {
        let state = locked(&self.state);
        // What is left after this time is lost.
        drop(self.emptied.wait_timeout_while(state, timeout, |state| state.bytes > 0));
    }
}

impl State {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }
}

/// Sends what is queued, for ever. Only this thread waits while journald does not read.
fn send<L>(shared: &Shared, filter: &Targets, connect: impl Fn() -> io::Result<L>)
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync,
{
    let connected = || Some(Dispatch::new(tracing_subscriber::registry().with(connect().ok()?).with(filter.clone())));
    // Now, since there may be no descriptor for it later.
    let mut journal = connected();
    loop {
        let entry = shared.next();
        // journald was there when the log started. If it restarts just now, this event is lost.
        journal = journal.or_else(connected);
        match (&journal, &entry) {
            (Some(journal), Entry::Event(event)) => event.send(journal),
            // It does not go through the queue, which may be full again.
            (Some(journal), Entry::Dropped(count)) => dispatcher::with_default(journal, || {
                tracing::warn!(dropped = count, "journald did not read in time: {count} events were not logged");
            }),
            (None, _) => {}
        }
        shared.sent(&entry);
    }
}

fn journald() -> io::Result<tracing_journald::Layer> {
    // The journal's own use of priorities: a daemon's usual messages are informational, syslog(3).
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer()?.with_field_prefix(None);
    Ok(layer.with_syslog_identifier(IDENTIFIER.to_owned()).with_priority_mappings(priorities))
}

/// An event that outlives the call that logged it. Its values are texts already: they are the same
/// bytes that `tracing-journald` would write.
struct Copied {
    metadata: &'static Metadata<'static>,
    values: Vec<(Field, String)>,
    bytes: usize,
}

impl Copied {
    fn of(event: &Event<'_>) -> Self {
        let mut copied = Self { metadata: event.metadata(), values: Vec::new(), bytes: EVENT_BYTES };
        event.record(&mut copied);
        copied
    }

    fn add(&mut self, field: &Field, text: String) {
        if self.values.len() < FIELDS_MAX {
            self.bytes += size_of::<(Field, String)>() + text.capacity();
            self.values.push((field.clone(), text));
        }
    }

    /// Logs it once more, with `journal` as the only listener.
    fn send(&self, journal: &Dispatch) {
        // An event without values says nothing.
        let Some((first, _)) = self.values.first() else { return };
        let values: [_; FIELDS_MAX] = std::array::from_fn(|index| match self.values.get(index) {
            Some((field, text)) => (field, Some(text as &dyn Value)),
            // A field without a value is not visited.
            None => (first, None),
        });
        journal.event(&Event::new(self.metadata, &self.metadata.fields().value_set(&values)));
    }
}

impl Visit for Copied {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::Registry;

    use super::*;

    /// A journal that keeps messages, and reads nothing while the test holds `stopped`.
    #[derive(Clone, Default)]
    struct Journal {
        stopped: Arc<Mutex<()>>,
        messages: Arc<Mutex<Vec<String>>>,
    }

    impl Layer<Registry> for Journal {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, Registry>) {
            drop(locked(&self.stopped));
            let values = Copied::of(event).values;
            let texts = values.iter().map(|(field, text)| format!("{}={text}", field.name()));
            locked(&self.messages).push(texts.collect::<Vec<_>>().join(" "));
        }
    }

    /// Logs into a queue that leads to `journal`.
    fn log_to(journal: &Journal, log: impl FnOnce(&Arc<Shared>)) -> Flush {
        let shared = Arc::new(Shared::default());
        let (ours, theirs) = (Arc::clone(&shared), journal.clone());
        thread::spawn(move || send(&ours, &Targets::new().with_default(LevelFilter::INFO), || Ok(theirs.clone())));
        let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(Queue(Arc::clone(&shared)));
        tracing::subscriber::with_default(subscriber, || log(&shared));
        Flush(shared)
    }

    #[test]
    fn events_arrive_in_order_with_their_values() {
        // Fields of each kind, and the end of the process, which waits for all of them.
        let journal = Journal::default();
        let flush = log_to(&journal, |_| {
            for number in 0..100 {
                tracing::info!(number, LOCK = %"a b", PEER = "\n", debugged = ?"\n", nothing = tracing::field::Empty, "hello {number}");
            }
            tracing::debug!("below the level");
        });
        drop(flush);
        let messages = locked(&journal.messages);
        let expected = |number| format!("message=hello {number} number={number} LOCK=a b PEER=\n debugged=\"\\n\"");
        assert_eq!(*messages, (0..100).map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_drops_and_reports() {
        // The journal stops; more is logged than the queue holds; it reads again.
        let journal = Journal::default();
        let stopped = locked(&journal.stopped);
        let flush = log_to(&journal, |shared| {
            let text = "x".repeat(QUEUE_BYTES_MAX / 10);
            for _ in 0..30 {
                tracing::info!("{text}");
                assert!(locked(&shared.state).bytes <= QUEUE_BYTES_MAX);
            }
            tracing::info!("{}", "x".repeat(QUEUE_BYTES_MAX));
        });
        drop(stopped);
        drop(flush);
        let messages = locked(&journal.messages);
        let (reports, events): (Vec<&String>, Vec<&String>) =
            messages.iter().partition(|text| text.contains("dropped="));
        let [report] = reports[..] else { panic!("{} reports", reports.len()) };
        let dropped = 31 - events.len();
        assert_eq!(
            *report,
            format!("message=journald did not read in time: {dropped} events were not logged dropped={dropped}")
        );
        assert_eq!(events.len(), 9);
    }

    #[test]
    fn a_stopped_journal_delays_the_end_by_a_moment() {
        // The process ends while the journal reads nothing.
        let journal = Journal::default();
        let _stopped = locked(&journal.stopped);
        let flush = log_to(&journal, |_| tracing::info!("lost"));
        let start = Instant::now();
        drop(flush);
        assert!(start.elapsed() >= FLUSH_MAX);
    }
}
