//! The lock table: what all sessions of a daemon share. It brings together the engine, which
//! decides, and the files, which hold the locks. It knows sessions only as numbers with a mailbox,
//! and nothing of their connections.
//!
//! A session submits an input ([`LockTable::submit`]), and its own task then does all that follows:
//!
//! ```text
//! submit -> decide (the engine, under its shard's mutex) -> notices -> mailboxes
//!             ^                       |
//!             |                       v
//!           Done <- file call <- carry out the other effects -> timers, hints
//! ```
//!
//! The table is made of parts that own their data: [`Shards`] has the engine, [`Storage`] the files
//! and their threads, [`Mailboxes`] the notices to sessions, [`WaitGraph`] the deadlock detection,
//! [`Hints`] what passes between daemons, [`Turns`] how long sessions keep their threads, and
//! [`ThrottledLog`] the messages that must not flood the journal.

pub(crate) mod budget;
pub(crate) mod hints;
mod log;
pub mod mailbox;
mod shards;
pub(crate) mod storage;
mod throttle;
pub mod turns;
mod wait_graph;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use nix::libc::{EMFILE, ENFILE};

use crate::clock;
use crate::files::OpenFile;
use crate::limits;
use crate::settings::Settings;
use crate::systemd::ids;
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Config, Effect, FileOp, Handed, Input, Outcome, Pace, SessionId, Timer};
use distrilock_protocol::name::LockName;
use hints::Hints;
pub use log::ThrottledLog;
use log::log_deleted;
use mailbox::{Mailbox, Mailboxes, Notice};
pub use shards::Shards;
use shards::{Shard, ShardIndex};
pub use storage::Storage;
use storage::threads::{StorageThreads, Task};
use turns::Turns;
pub use wait_graph::WaitGraph;
use wait_graph::{Edge, Queue};

/// An input to the engine.
pub type LockInput = Input<OpenFile>;

type LockEffect = Effect<OpenFile>;

/// Buffers for effects.
#[derive(Default)]
struct Scratch {
    /// What the engine has just queued.
    new: Vec<LockEffect>,
    /// What is still to be carried out.
    due: VecDeque<LockEffect>,
}

thread_local! {
    /// The thread's buffers while it carries out effects: empty in between.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where an input comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// From a session, whose task goes on to read its mailbox: it is not woken for its own notices.
    Session(SessionId, &'a Mailbox),
    /// From the daemon itself: a timer, a hint, a watch.
    Daemon,
}

/// What all sessions of a daemon share.
#[derive(Debug)]
pub struct LockTable {
    /// The command line.
    pub settings: Settings,
    /// The host's name, which clients see.
    pub node: String,
    /// The sessions' mailboxes.
    pub mailboxes: Mailboxes,
    /// The lock directory and what is known of its file system.
    pub storage: Storage,
    /// The engine.
    pub shards: Shards,
    /// Which session waits for which.
    pub waits: WaitGraph,
    /// How long sessions keep their threads.
    pub turns: Arc<Turns>,
    /// Messages that could come in floods.
    pub log: ThrottledLog,
    pub(crate) hints: Hints,
    /// The runtime of the engine's timers.
    timers: tokio::runtime::Handle,
}

impl LockTable {
    /// A table without sessions and locks. `descriptors_max` is the limit of open files.
    pub(crate) fn new(
        settings: Settings,
        storage: Storage,
        node: String,
        descriptors_max: u64,
        turns: Arc<Turns>,
        timers: tokio::runtime::Handle,
    ) -> Self {
        let files_max = (descriptors_max / limits::LINGER_SHARE_OF_DESCRIPTORS).min(limits::LINGER_FILES_MAX);
        let network = storage.files.network().is_some();
        let default = if network { limits::NETWORK_LINGER } else { limits::LINGER };
        let linger = settings.linger.unwrap_or(default);
        let config = Config {
            pace: if network { Pace::NETWORK } else { Pace::LOCAL },
            linger_ms: u64::try_from(linger.as_millis()).unwrap_or(u64::MAX),
            linger_files_max: usize::try_from(files_max).unwrap_or(usize::MAX).div_ceil(SHARDS),
        };
        Self {
            mailboxes: Mailboxes::new(settings.sessions),
            settings,
            node,
            storage,
            shards: Shards::new(&config),
            waits: WaitGraph::default(),
            turns,
            log: ThrottledLog::default(),
            hints: Hints::default(),
            timers,
        }
    }

    /// Gives the engine an input about a name and carries out everything that follows. Every notice
    /// goes into a mailbox.
    pub fn submit(self: &Arc<Self>, name: &LockName, input: LockInput, source: Source<'_>) {
        self.submit_to_shard(self.shards.index_of(name), input, source);
    }

    /// Gives every shard an input of the daemon.
    pub(crate) fn submit_to_all(self: &Arc<Self>, input: impl Fn() -> LockInput) {
        for shard in Shards::all() {
            self.submit_to_shard(shard, input(), Source::Daemon);
        }
    }

    /// Returns whether a file operation or a timer followed.
    ///
    /// The engine's mutex is held for each input, but not for the file calls in between. Nobody
    /// else can begin another operation on the name meanwhile, since this task has its file (I4).
    fn submit_to_shard(self: &Arc<Self>, shard: ShardIndex, input: LockInput, source: Source<'_>) -> bool {
        // Completions always pass; timers and what other daemons say wait for the next process.
        let stops_when_frozen = matches!(source, Source::Daemon) && !matches!(input, Input::Done { .. });
        self.carry_out(shard, source, |engine, effects| {
            // Asked under the engine's mutex: an engine once seen frozen and at rest stays so.
            if stops_when_frozen && self.shards.is_frozen() {
                return;
            }
            engine.input(Input::Now(clock::now_ms()), effects);
            engine.input(input, effects);
        })
    }

    /// Continues with a name of the previous process.
    pub(crate) fn take_over(self: &Arc<Self>, lock: Handed<OpenFile>) {
        let shard = self.shards.index_of(&lock.name);
        self.carry_out(shard, Source::Daemon, |engine, effects| {
            engine.input(Input::Now(clock::now_ms()), effects);
            engine.take_over(lock, |session| self.mailboxes.is_open(session), effects);
        });
    }

    /// Lets the engine decide on what `feed` gives it, and carries out the effects until none is
    /// left.
    fn carry_out(
        self: &Arc<Self>,
        shard: ShardIndex,
        source: Source<'_>,
        feed: impl FnOnce(&mut Shard, &mut Vec<LockEffect>),
    ) -> bool {
        let mut scratch = SCRATCH.take();
        self.decide(shard, source, &mut scratch, feed);
        let anything = !scratch.due.is_empty();
        while let Some(effect) = scratch.due.pop_front() {
            match effect {
                Effect::File { name, op, file } => {
                    if let Some(threads) = &self.storage.threads {
                        if !StorageThreads::is_current() {
                            threads.enqueue(self, Task { shard, name, op, file });
                            continue;
                        }
                        threads.started(&name);
                    }
                    let before = file.as_ref().and_then(OpenFile::locked);
                    let (file, outcome) = self.call_files(&name, op, file);
                    if let Some(threads) = &self.storage.threads {
                        threads.completed(&name);
                    }
                    // No lock, or a shared one in the place of an exclusive one, or fewer slots.
                    let gives = matches!(op, FileOp::Give { .. });
                    if gives || file.as_ref().and_then(OpenFile::locked) < before {
                        self.hints.freed(&name);
                    }
                    self.decide(shard, source, &mut scratch, |engine, effects| {
                        engine.input(Input::Now(clock::now_ms()), effects);
                        engine.input(Input::Done { name, file, outcome }, effects);
                    });
                }
                Effect::Arm(timer, after_ms) => self.arm(shard, timer, after_ms),
                Effect::Contended(name) => self.hints.contended(name),
                Effect::Answer { .. } | Effect::Lost { .. } | Effect::Doubt { .. } => {
                    unreachable!("notices are posted at once")
                }
            }
        }
        SCRATCH.set(scratch);
        anything
    }

    /// Lets the engine decide, and posts its notices while the shard's mutex is held: a session
    /// gets them in the order in which the engine decided, whichever thread brought the input. The
    /// other effects become due.
    fn decide(
        &self,
        shard: ShardIndex,
        source: Source<'_>,
        scratch: &mut Scratch,
        feed: impl FnOnce(&mut Shard, &mut Vec<LockEffect>),
    ) {
        let mut wakers = Vec::new();
        let mut post = |session, notice| match source {
            Source::Session(own, mailbox) if own == session => mailbox.leave(notice),
            _ => wakers.extend(self.mailboxes.post(session, notice)),
        };
        let mut engine = self.shards.lock(shard);
        feed(&mut engine, &mut scratch.new);
        for effect in scratch.new.drain(..) {
            match effect {
                Effect::Answer { name, session, request, answer } => {
                    post(session, Notice::Answer { name, request, answer });
                }
                Effect::Lost { name, session, reason } => {
                    tracing::warn!(
                        MESSAGE_ID = ids::LOCK_LOST, LOCK = %name, SESSION = %session,
                        "session {session} lost the lock {name}: {reason}"
                    );
                    post(session, Notice::Lost { name, reason });
                }
                Effect::Doubt { name, session, valid_ms } => post(session, Notice::Doubt { name, valid_ms }),
                effect => scratch.due.push_back(effect),
            }
        }
        drop(engine);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn arm(self: &Arc<Self>, shard: ShardIndex, timer: Timer, after_ms: u64) {
        let table = Arc::clone(self);
        self.timers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            table.submit_to_shard(shard, Input::Elapsed(timer), Source::Daemon);
        });
    }

    /// Makes the file calls of an operation. When descriptors run out, released files are closed
    /// first.
    fn call_files(
        self: &Arc<Self>,
        name: &LockName,
        op: FileOp,
        mut file: Option<OpenFile>,
    ) -> (Option<OpenFile>, Outcome) {
        loop {
            let before = file.as_ref().filter(|file| file.is_locked()).map(OpenFile::id);
            let (left, outcome) = self.storage.files.perform(name, op, file);
            match &outcome {
                Outcome::Failed(fault) if matches!(fault.errno(), Some(EMFILE | ENFILE)) && self.shed() => {
                    file = left;
                    continue;
                }
                Outcome::Failed(fault) => self.log.fault(name, fault),
                Outcome::Unlocked { file_gone: true } => log_deleted(name),
                // A lock was to be passed on, and its file had been deleted.
                Outcome::Locked if before.is_some() && before != left.as_ref().map(OpenFile::id) => log_deleted(name),
                _ => {}
            }
            return (left, outcome);
        }
    }

    /// Closes and deletes the released file that is oldest in some shard. Returns false if there is
    /// none.
    pub fn shed(self: &Arc<Self>) -> bool {
        Shards::all().any(|shard| self.submit_to_shard(shard, Input::Shed, Source::Daemon))
    }

    /// Refuses the waiting requests since the daemon stops, and deletes each file as soon as it is
    /// released.
    pub(crate) fn drain(self: &Arc<Self>) {
        self.submit_to_all(|| Input::Drain);
    }

    /// Notes that a session waits for a name, unless that would close a cycle: then returns a
    /// description of the cycle.
    #[must_use]
    pub fn note_wait(&self, session: SessionId, name: &LockName) -> Option<String> {
        let queue_of = |name: &LockName| {
            let (holders, waiters) = self.shards.of(name).queue(name);
            Queue { holders, waiters }
        };
        let cycle = self.waits.add_unless_cycle(session, name, queue_of)?;
        let edges: Vec<String> = cycle.iter().take(limits::CYCLE_SHOWN_MAX).map(|edge| self.describe(edge)).collect();
        let more = if cycle.len() > edges.len() { "; and so on" } else { "" };
        Some(format!("it would wait for itself: {}{more}", edges.join("; ")))
    }

    fn describe(&self, edge: &Edge) -> String {
        let called = |session: SessionId| match self.mailboxes.introduction(session).name {
            Some(name) => format!("{name} (session {session})"),
            None => format!("session {session}"),
        };
        let (waits, other) = (called(edge.waits), called(edge.because_of));
        let how = if edge.holds { "holds" } else { "waited for before" };
        format!("{waits} waits for {}, which {other} {how}", edge.name)
    }
}

#[cfg(test)]
impl LockTable {
    /// A table over a local directory.
    pub(crate) fn of_directory(directory: &std::path::Path, timers: &tokio::runtime::Handle) -> Arc<Self> {
        let settings = Settings::for_directory(Some(directory.into()));
        let storage = Storage::new(crate::files::Files::new(directory.into()), "local", None, &settings);
        let turns = Arc::new(Turns::new(1));
        Arc::new(Self::new(settings, storage, String::new(), 1000, turns, timers.clone()))
    }
}
