//! The lock table: what all sessions of a daemon share. It brings together the engine, which
//! decides, and the files, which hold the locks. It knows sessions only as numbers with a mailbox,
//! and nothing of their connections.
//!
//! A session submits an input ([`LockTable::submit`]), and its own task then does all that follows,
//! except file calls that may wait, which are left to the storage threads:
//!
//! ```text
//! submit -> decide (the engine, under its shard's mutex) -> notices -> mailboxes
//!             ^                       |
//!             |                       v
//!           Done <- file call <- carry out the other effects -> timers, hints
//! ```
//!
//! The table is made of parts that own their data: [`Shards`] has the engine, [`Storage`] the files
//! and their threads, [`Mailboxes`] the notices to sessions, `Deadlocks` the deadlock detector,
//! `Boards` who holds what at which daemon, `Hints` the wake-ups between daemons, [`Turns`] how
//! long sessions keep their threads, [`ThrottledLog`] the messages that must not flood the journal,
//! and `History` who held what.

pub(crate) mod boards;
pub(crate) mod budget;
pub(crate) mod deadlocks;
pub(crate) mod hints;
mod history;
mod log;
pub mod mailbox;
mod shards;
pub(crate) mod storage;
mod throttle;
pub mod turns;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use nix::libc::{EDQUOT, EMFILE, ENFILE, ENOSPC};

use crate::clock;
use crate::files::{OpenFile, Performed};
use crate::limits::{self, EFFECTS_AT_ONCE, SHEDS_PER_CALL_MAX};
use crate::settings::Settings;
use crate::slice::TimeSlice;
use boards::Boards;
use budget::Budget;
use deadlocks::Deadlocks;
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Config, Effect, FileOp, Handed, Input, Mode, Outcome, Pace, SessionId, Timer};
use distrilock_protocol::name::LockName;
use hints::Hints;
use history::{History, Moment};
pub use log::{Offender, ThrottledLog};
use mailbox::{Mailbox, Mailboxes, Notice};
pub use shards::Shards;
use shards::{Shard, ShardIndex};
pub use storage::Storage;
use storage::threads::{StorageThreads, Task};
use storage::watch::watch_local;
use turns::Turns;

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
    /// From a session, whose task reads its mailbox next: it is not woken for its own notices.
    Session(SessionId, &'a Mailbox),
    /// From the daemon itself: a timer, a hint, a watch.
    Daemon,
}

/// What there is for all sessions together. Of each, every session may always have some; what goes
/// beyond that comes out of the budget.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// Locks that are held or being acquired.
    pub(crate) locks: Budget,
    /// Requests that wait.
    pub(crate) waits: Budget,
    /// Requests that do not wait, and have no answer.
    pub(crate) unanswered: Budget,
    /// Bytes that are not a whole message yet, or that clients have not read.
    pub(crate) bytes: Budget,
}

impl Budgets {
    fn new(settings: &Settings) -> Self {
        Self {
            locks: Budget::new(settings.locks),
            waits: Budget::new(settings.waits),
            unanswered: Budget::new(limits::UNANSWERED_MAX),
            bytes: Budget::new(settings.buffer_bytes),
        }
    }
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
    /// The deadlock detector.
    pub deadlocks: Deadlocks,
    /// What this daemon and others show each other of their locks.
    pub boards: Boards,
    /// How long sessions keep their threads.
    pub turns: Arc<Turns>,
    /// What there is for all sessions together.
    pub(crate) budgets: Budgets,
    /// Messages that could come in floods.
    pub log: ThrottledLog,
    /// Who held what, for the log.
    pub(crate) history: History,
    pub(crate) hints: Hints,
    /// The main thread's runtime, which has the engine's timers.
    timers: tokio::runtime::Handle,
    /// How many pieces of work are left to the main thread.
    left: AtomicUsize,
    /// Descriptors from this number on are the reserve for lock files.
    reserve_from: u64,
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
            linger_evicts: network,
            history_from_ms: settings.audit.from_ms(),
            linger_files_max: usize::try_from(files_max).unwrap_or(usize::MAX).div_ceil(SHARDS),
        };
        Self {
            mailboxes: Mailboxes::new(settings.sessions),
            budgets: Budgets::new(&settings),
            settings,
            node,
            storage,
            shards: Shards::new(&config),
            deadlocks: Deadlocks::default(),
            boards: Boards::default(),
            turns,
            log: ThrottledLog::default(),
            history: History::default(),
            hints: Hints::default(),
            timers,
            left: AtomicUsize::new(0),
            reserve_from: descriptors_max - descriptors_max / limits::RESERVE_SHARE_OF_DESCRIPTORS,
        }
    }

    /// Starts what file calls need, where they may take long.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start_storage(self: &Arc<Self>) -> std::io::Result<()> {
        self.storage.files.network().map_or(Ok(()), |_| self.storage.threads.start_first(self))
    }

    /// Whether a descriptor that was just opened belongs to the reserve for lock files. The kernel
    /// gives out the lowest number that is free (open(2)), so all below it are in use.
    #[must_use]
    pub fn in_reserve(&self, descriptor: BorrowedFd<'_>) -> bool {
        u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number >= self.reserve_from)
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
    /// left, or leaves the rest to the main thread.
    fn carry_out(
        self: &Arc<Self>,
        shard: ShardIndex,
        source: Source<'_>,
        feed: impl FnOnce(&mut Shard, &mut Vec<LockEffect>),
    ) -> bool {
        let mut scratch = SCRATCH.take();
        self.decide(shard, source, &mut scratch, feed);
        let anything = !scratch.due.is_empty();
        self.carry_on(shard, source, &mut scratch);
        if !scratch.due.is_empty() {
            self.leave_to_main_thread(shard, std::mem::take(&mut scratch.due));
        }
        SCRATCH.set(scratch);
        anything
    }

    /// Carries out due effects for a while: one release can let thousands of sessions in, a batch
    /// after each of many probes, and others do not wait for all of that. A storage thread serves
    /// nobody else and carries out everything.
    fn carry_on(self: &Arc<Self>, shard: ShardIndex, source: Source<'_>, scratch: &mut Scratch) {
        let mut slice = if StorageThreads::is_current() { TimeSlice::endless() } else { TimeSlice::begin() };
        let mut carried_out = 0;
        while let Some(effect) = scratch.due.pop_front() {
            match effect {
                Effect::File { name, op, file } => {
                    let Some(task) = self.hand_to_threads(Task { shard, name, op, file }) else { continue };
                    let done = self.complete(task);
                    self.decide(shard, source, scratch, |engine, effects| {
                        // What a session's own task calls takes microseconds.
                        if matches!(source, Source::Daemon) {
                            engine.input(Input::Now(clock::now_ms()), effects);
                        }
                        engine.input(done, effects);
                    });
                }
                Effect::Arm(timer, after_ms) => self.arm(shard, timer, after_ms),
                Effect::Contended(name) => self.hints.contended(name),
                Effect::Answer { .. } | Effect::Lost { .. } | Effect::Doubt { .. } | Effect::Past { .. } => {
                    unreachable!("notices are posted at once, and what is past is logged")
                }
            }
            carried_out += 1;
            if carried_out >= EFFECTS_AT_ONCE && slice.is_over() {
                return;
            }
        }
    }

    /// The main thread carries out what is due, piece by piece. To the engine, the operations are
    /// in flight meanwhile, so nobody else can begin one on their names (I4).
    fn leave_to_main_thread(self: &Arc<Self>, shard: ShardIndex, due: VecDeque<LockEffect>) {
        let table = Arc::clone(self);
        table.left.fetch_add(1, Ordering::SeqCst);
        self.timers.spawn(async move {
            let mut scratch = Scratch { new: Vec::new(), due };
            while !scratch.due.is_empty() {
                tokio::task::yield_now().await;
                table.carry_on(shard, Source::Daemon, &mut scratch);
            }
            table.left.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Waits until the main thread has carried out everything that was left to it.
    pub(crate) async fn carried_out(&self) {
        while self.left.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Gives an operation that may wait to the storage threads. Returns it if this thread is to
    /// carry it out.
    fn hand_to_threads(self: &Arc<Self>, task: Task) -> Option<Task> {
        if !self.storage.may_wait(task.op) {
            return Some(task);
        }
        let task = if StorageThreads::is_current() {
            self.storage.threads.started(&task.name);
            Some(task)
        } else {
            self.storage.threads.enqueue(self, task)
        };
        watch_local(self, &self.timers);
        task
    }

    /// Makes the file calls of an operation, and tells other daemons if it gave anything back. The
    /// engine has to have the result at once: nobody else can begin another operation on the name.
    fn complete(self: &Arc<Self>, task: Task) -> LockInput {
        let Task { name, op, file, .. } = task;
        let before = file.as_ref().and_then(OpenFile::locked);
        let (file, outcome) = self.call_files(&name, op, file);
        if self.storage.may_wait(op) {
            self.storage.threads.completed(&name);
        }
        // No lock, or a shared one in the place of an exclusive one, or fewer slots.
        let gives = matches!(op, FileOp::Give { .. });
        if gives || file.as_ref().and_then(OpenFile::locked) < before {
            self.hints.freed(&name);
        }
        Input::Done { name, file, outcome }
    }

    /// Lets the engine decide, and posts its notices while the shard's mutex is held: a session
    /// gets them in the order in which the engine decided, whichever thread submitted the input.
    /// The other effects become due.
    fn decide(
        &self,
        shard: ShardIndex,
        source: Source<'_>,
        scratch: &mut Scratch,
        feed: impl FnOnce(&mut Shard, &mut Vec<LockEffect>),
    ) {
        let (mut wakers, mut past) = (Vec::new(), Vec::new());
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
                    self.log.lost(session, &name, reason);
                    post(session, Notice::Lost { name, reason });
                }
                Effect::Doubt { name, session, valid_ms } => post(session, Notice::Doubt { name, valid_ms }),
                Effect::Past { .. } => past.push(effect),
                effect => scratch.due.push_back(effect),
            }
        }
        drop(engine);
        wakers.into_iter().for_each(Waker::wake);
        for effect in past {
            if let Effect::Past { name, session, mode, past } = effect {
                self.history.log(&Moment { name: &name, session, mode, mailboxes: &self.mailboxes }, past);
            }
        }
    }

    fn arm(self: &Arc<Self>, shard: ShardIndex, timer: Timer, after_ms: u64) {
        let table = Arc::clone(self);
        self.timers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            table.submit_to_shard(shard, Input::Elapsed(timer), Source::Daemon);
        });
    }

    /// Makes the file calls of an operation. When descriptors run out, or the file system is full,
    /// released files are closed and deleted first.
    fn call_files(
        self: &Arc<Self>,
        name: &LockName,
        mut op: FileOp,
        mut file: Option<OpenFile>,
    ) -> (Option<OpenFile>, Outcome) {
        let mut sheds_left = SHEDS_PER_CALL_MAX;
        // Slots that are taken but lack their fence, and why.
        let mut unfenced = None;
        loop {
            let Performed { file: left, outcome, gone_while_held } =
                self.storage.files.perform_and_look(name, op, file);
            if gone_while_held {
                self.log.deleted(name);
            }
            let outcome = match (unfenced.take(), outcome) {
                (None, outcome) => outcome,
                (Some((slots, _)), Outcome::Fenced(fence)) => Outcome::Taken { slots, fence: Some(fence) },
                (Some((slots, fault)), _) => Outcome::Taken { slots, fence: Some(Err(fault)) },
            };
            let (Outcome::Failed(fault)
            | Outcome::Fenced(Err(fault))
            | Outcome::Stamped(Err(fault))
            | Outcome::Taken { fence: Some(Err(fault)), .. }) = &outcome
            else {
                return (left, outcome);
            };
            // A released file has a descriptor, an inode and perhaps a block.
            let is_short = matches!(fault.errno(), Some(EMFILE | ENFILE | ENOSPC | EDQUOT));
            if !(is_short && sheds_left > 0 && self.shed()) {
                self.log.fault(name, fault);
                return (left, outcome);
            }
            sheds_left -= 1;
            file = left;
            if let (FileOp::Take { of, .. }, Outcome::Taken { slots, fence: Some(Err(fault)) }) = (op, outcome) {
                op = FileOp::ProbeFence(Mode::Slots(of));
                unfenced = Some((slots, fault));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use distrilock_engine::fault::Cause;
    use distrilock_engine::{Answer, Asked, Extent, RequestId};
    use distrilock_protocol::want::Want;
    use mailbox::OpenedMailbox;

    /// The disk does not answer, and a fence waits for it: after the time for that the request is
    /// refused, although a local file system has no server to listen to. When nothing is under way
    /// any more, nobody looks after it.
    #[test]
    fn a_disk_that_does_not_answer() {
        const TURNS_MAX: u32 = 6000;
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut table = LockTable::of_directory(directory.path(), runtime.handle());
        Arc::get_mut(&mut table).unwrap().settings.storage_timeout = Duration::from_millis(1);
        let OpenedMailbox { id, mailbox } = table.mailboxes.open().unwrap();
        let name = LockName::parse(b"hung").unwrap();
        let asked = Asked { name: name.clone(), session: id, request: RequestId(0) };
        let want = Want { extent: Extent::Exclusive, fence: true };
        // Nobody carries out its file operation.
        table.shards.of(&name).input(Input::Acquire { asked, want, wait: true }, &mut Vec::new());
        table.storage.threads.started(&name);
        watch_local(&table, runtime.handle());
        let until = |what: &str, mut holds: Box<dyn FnMut() -> bool + '_>| {
            runtime.block_on(async {
                for _ in 0..TURNS_MAX {
                    if holds() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                panic!("never came true: {what}");
            });
        };
        until("an answer", Box::new(|| !mailbox.is_empty()));
        let mut notices = Vec::new();
        mailbox.drain_into(&mut notices, usize::MAX);
        let refused = |notice: &Notice| matches!(notice, Notice::Answer { answer: Answer::Storage(fault), .. } if fault.cause == Cause::DiskSilent);
        assert!(matches!(&notices[..], [notice] if refused(notice)), "{notices:?}");
        table.storage.threads.completed(&name);
        until("nobody looks", Box::new(|| Arc::strong_count(&table) == 1));
    }
}
