//! The daemon's life: start, serve, stop; and [`Core`], what all its sessions share.
//!
//! The way of a request: `front` reads bytes and hands them to a [`Session`](crate::session::Session), which decodes them and
//! gives the engine an input through [`Core::submit`]. The same task then carries out the effects: it makes the file calls
//! itself (microseconds on a local file system; on a network file system it leaves them to `workers`), and posts answers to other
//! sessions into their mailboxes. What other daemons of the directory do is heard of in `hints`.

pub mod directory;
mod hand_over;
mod handed_lock;
mod hints;
mod life;
mod logs;
pub mod mailbox;
mod storage;
mod throttle;
mod waits;
mod workers;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use nix::libc::{EMFILE, ENFILE};

use crate::clock;
use crate::files::{Files, OpenFile};
use crate::front::Frozen;
use crate::limits;
use crate::settings::{OnSilence, Settings};
use crate::systemd::ids;
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Config, Effect, Engine, FileOp, Input, Outcome, Pace, SessionId, Timer, View};
use distrilock_protocol::name::LockName;
use hints::Hints;
pub use life::{StartFault, run};
use logs::log_deleted;
use mailbox::{Letter, Mailbox, Mailboxes};
use throttle::Throttle;
use waits::{Edge, Queue, Waits};
use workers::{Task, Workers};

type Shard = Engine<OpenFile>;
type LockInput = Input<OpenFile>;

/// Effects as the engine queues them, and those that are still to be carried out.
type Room = (Vec<Effect<OpenFile>>, VecDeque<Effect<OpenFile>>);

thread_local! {
    /// Where a thread keeps effects while it carries them out: empty in between.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// How long a stop or a hand-over waits for calls on a network file system.
const STORAGE_REST: std::time::Duration = std::time::Duration::from_secs(5);

/// What all sessions of a daemon share.
#[derive(Debug)]
pub struct Core {
    /// What the daemon was told.
    pub settings: Settings,
    /// The host's name, for those who ask which daemon this is.
    pub node: String,
    /// The sessions' mailboxes.
    pub mailboxes: Mailboxes,
    files: Files,
    /// What is under the lock directory: the word for it.
    storage: &'static str,
    /// How long a holder may take to stop, where a file server may give its lock away.
    stop_ms: Option<u64>,
    /// Threads for the file calls, where these may take long.
    workers: Option<Workers>,
    /// The held lock that was proven last.
    proven: Mutex<Option<LockName>>,
    shards: Box<[Mutex<Shard>]>,
    hash: RandomState,
    hints: Hints,
    waits: Waits,
    faults: Throttle,
    exhausted: Throttle,
    too_many: Throttle,
    /// Where timers run.
    timers: tokio::runtime::Handle,
    /// Nothing begins any more but what sessions bring: they are handed over.
    is_frozen: AtomicBool,
    /// The connections that are.
    frozen: Mutex<Vec<Frozen>>,
}

impl Core {
    fn new(
        settings: Settings,
        (files, storage, stop_ms): (Files, &'static str, Option<u64>),
        node: String,
        descriptors: u64,
        timers: tokio::runtime::Handle,
    ) -> Self {
        let files_max = (descriptors / limits::LINGER_SHARE_OF_DESCRIPTORS).min(limits::LINGER_FILES_MAX);
        let network = files.network().is_some();
        let default = if network { limits::NETWORK_LINGER } else { limits::LINGER };
        let linger = settings.linger.unwrap_or(default);
        let config = Config {
            pace: if network { Pace::NETWORK } else { Pace::LOCAL },
            linger_ms: u64::try_from(linger.as_millis()).unwrap_or(u64::MAX),
            linger_files_max: usize::try_from(files_max).unwrap_or(usize::MAX).div_ceil(SHARDS),
        };
        let shards = (0..SHARDS).map(|_| Mutex::new(Engine::new(config.clone()))).collect();
        let mailboxes = Mailboxes::new(settings.sessions);
        Self {
            settings,
            node,
            mailboxes,
            files,
            storage,
            stop_ms,
            workers: network.then(Workers::default),
            proven: Mutex::default(),
            shards,
            hash: RandomState::new(),
            hints: Hints::default(),
            waits: Waits::default(),
            faults: Throttle::default(),
            exhausted: Throttle::default(),
            too_many: Throttle::default(),
            timers,
            is_frozen: AtomicBool::new(false),
            frozen: Mutex::default(),
        }
    }

    /// The kind of file system under the lock directory, as the protocol calls it.
    #[must_use]
    pub fn storage(&self) -> &'static str {
        self.storage
    }

    /// How long a holder may take to stop when its lock is lost, in milliseconds; `None` where locks are not lost by silence.
    #[must_use]
    pub fn stop_ms(&self) -> Option<u64> {
        self.stop_ms
    }

    /// For how many milliseconds from now all locks are surely held, unless a session is told otherwise; `None`: for as long as
    /// the daemon lives, or nothing can be said.
    #[must_use]
    pub fn valid_ms(&self) -> Option<u64> {
        let contact = self.contact()?;
        (self.settings.on_storage_silence == OnSilence::Fence).then(|| contact.valid_ms(clock::now_ms()))
    }

    /// The path of a name's lock file, for those who have to be told of it.
    #[must_use]
    pub fn lock_path(&self, name: &str) -> String {
        self.files.path(name).to_string_lossy().into_owned()
    }

    /// Gives the engine an input about a name and carries out what follows. Every answer goes into a mailbox, that of the
    /// session which asks (`mine`) too, which is not woken for it.
    pub fn submit(self: &Arc<Self>, name: &LockName, input: Input<OpenFile>, mine: (SessionId, &Mailbox)) {
        self.carry_out(self.shard_of(name), input, Some(mine));
    }

    /// Gives the engine an input about a name that no session brings.
    fn bring(self: &Arc<Self>, name: &LockName, input: Input<OpenFile>) {
        self.carry_out(self.shard_of(name), input, None);
    }

    fn shard_of(&self, name: &LockName) -> usize {
        let places = SHARDS as u64;
        usize::try_from(self.hash.hash_one(name) % places).expect("there are few shards")
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().expect("a panic aborts the daemon, so that no mutex is ever poisoned")
    }

    /// The engine's mutex is held for each input, not for the file calls in between: the file is with us meanwhile, so that
    /// nobody else begins another operation on the name (I4). Tells whether a file operation or a timer followed.
    fn carry_out(self: &Arc<Self>, shard: usize, input: Input<OpenFile>, mine: Option<(SessionId, &Mailbox)>) -> bool {
        // A completion always comes through; timers and what others say have to wait for the next process.
        let waits = mine.is_none() && !matches!(input, Input::Done { .. });
        self.work(shard, mine, |engine, effects| {
            // Asked under the engine's mutex: who has found it frozen and at rest finds it so ever after.
            if waits && self.is_frozen.load(Ordering::SeqCst) {
                return;
            }
            engine.input(Input::Now(clock::now_ms()), effects);
            engine.input(input, effects);
        })
    }

    fn work(
        self: &Arc<Self>,
        shard: usize,
        mine: Option<(SessionId, &Mailbox)>,
        decide: impl FnOnce(&mut Shard, &mut Vec<Effect<OpenFile>>),
    ) -> bool {
        let (mut effects, mut due) = ROOM.take();
        self.decide(shard, mine, &mut effects, &mut due, decide);
        let anything = !due.is_empty();
        while let Some(effect) = due.pop_front() {
            match effect {
                Effect::File { name, op, file } => {
                    if let Some(workers) = &self.workers {
                        if !Workers::is_worker() {
                            workers.begin(self, Task { shard, name, op, file });
                            continue;
                        }
                        workers.note(&name);
                    }
                    let before = file.as_ref().and_then(OpenFile::locked);
                    let (file, outcome) = self.perform(&name, op, file);
                    if let Some(workers) = &self.workers {
                        workers.forget(&name);
                    }
                    // No lock, or a shared one in the place of an exclusive one, or fewer slots.
                    let gives = matches!(op, FileOp::Give { .. });
                    if gives || file.as_ref().and_then(OpenFile::locked) < before {
                        self.hints.freed(&name);
                    }
                    self.decide(shard, mine, &mut effects, &mut due, |engine, effects| {
                        engine.input(Input::Now(clock::now_ms()), effects);
                        engine.input(Input::Done { name, file, outcome }, effects);
                    });
                }
                Effect::Arm(timer, after_ms) => self.arm(shard, timer, after_ms),
                Effect::Contended(name) => self.hints.contended(name),
                Effect::Answer { .. } | Effect::Lost { .. } | Effect::Doubt { .. } => {
                    unreachable!("letters are posted at once")
                }
            }
        }
        ROOM.set((effects, due));
        anything
    }

    /// Letters are posted while the shard's mutex is held: a session gets them in the order in which the engine decided, whoever
    /// brought the input. What remains to be done goes to `due`; `effects` is room to work in.
    fn decide(
        &self,
        shard: usize,
        mine: Option<(SessionId, &Mailbox)>,
        effects: &mut Vec<Effect<OpenFile>>,
        due: &mut VecDeque<Effect<OpenFile>>,
        decide: impl FnOnce(&mut Shard, &mut Vec<Effect<OpenFile>>),
    ) {
        let mut wakers = Vec::new();
        let mut post = |session, letter| match mine {
            Some((me, mailbox)) if me == session => mailbox.leave(letter),
            _ => wakers.extend(self.mailboxes.post(session, letter)),
        };
        let mut engine = self.shard(shard);
        decide(&mut engine, effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Answer { name, session, request, answer } => {
                    post(session, Letter::Answer { name, request, answer });
                }
                Effect::Lost { name, session, reason } => {
                    tracing::warn!(
                        MESSAGE_ID = ids::LOCK_LOST, LOCK = %name, SESSION = %session,
                        "session {session} lost the lock {name}: {reason}"
                    );
                    post(session, Letter::Lost { name, reason });
                }
                Effect::Doubt { name, session, valid_ms } => post(session, Letter::Doubt { name, valid_ms }),
                effect => due.push_back(effect),
            }
        }
        drop(engine);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Notes that a session waits for a name.
    pub fn wait_begins(&self, session: SessionId, name: &LockName) {
        self.waits.begin(session, name);
    }

    /// The session waits for the name no more.
    pub fn wait_ends(&self, session: SessionId, name: &LockName) {
        self.waits.end(session, name);
    }

    /// Notes that a session waits for a name, unless that closes a cycle: then it tells which.
    #[must_use]
    pub fn cycle(&self, session: SessionId, name: &LockName) -> Option<String> {
        let queue_of = |name: &LockName| {
            let (holders, waiters) = self.shard(self.shard_of(name)).queue(name);
            Queue { holders, waiters }
        };
        let cycle = self.waits.cycle(session, name, queue_of)?;
        let links: Vec<String> = cycle.iter().take(limits::CYCLE_SHOWN_MAX).map(|edge| self.link(edge)).collect();
        let more = if cycle.len() > links.len() { "; and so on" } else { "" };
        Some(format!("it would wait for itself: {}{more}", links.join("; ")))
    }

    fn link(&self, edge: &Edge) -> String {
        let called = |session: SessionId| match self.mailboxes.introduction(session).name {
            Some(name) => format!("{name} (session {session})"),
            None => format!("session {session}"),
        };
        let (waits, other) = (called(edge.waits), called(edge.because_of));
        let how = if edge.holds { "holds" } else { "waited for before" };
        format!("{waits} waits for {}, which {other} {how}", edge.name)
    }

    fn arm(self: &Arc<Self>, shard: usize, timer: Timer, after_ms: u64) {
        let core = Arc::clone(self);
        self.timers.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(after_ms)).await;
            core.carry_out(shard, Input::Elapsed(timer), None);
        });
    }

    /// Makes the file calls. When descriptors run out, released files give way first.
    fn perform(
        self: &Arc<Self>,
        name: &LockName,
        op: FileOp,
        mut file: Option<OpenFile>,
    ) -> (Option<OpenFile>, Outcome) {
        loop {
            let before = file.as_ref().filter(|file| file.is_locked()).map(OpenFile::identity);
            let (left, outcome) = self.files.perform(name, op, file);
            match &outcome {
                Outcome::Failed(fault) if matches!(fault.errno(), Some(EMFILE | ENFILE)) && self.shed() => {
                    file = left;
                    continue;
                }
                Outcome::Failed(fault) => self.log_fault(name, fault),
                Outcome::Unlocked { file_gone: true } => log_deleted(name),
                // A lock was to be passed on, and its file had been deleted.
                Outcome::Locked if before.is_some() && before != left.as_ref().map(OpenFile::identity) => {
                    log_deleted(name)
                }
                _ => {}
            }
            return (left, outcome);
        }
    }

    /// Whether every shard can be reached: nobody keeps one locked.
    fn turn_shards(&self) {
        for shard in 0..SHARDS {
            drop(self.shard(shard));
        }
    }

    /// Closes and deletes the released file that is oldest in some shard; false if there is none.
    pub fn shed(self: &Arc<Self>) -> bool {
        (0..SHARDS).any(|shard| self.carry_out(shard, Input::Shed, None))
    }

    /// Another daemon is gone, and nothing that it promised will come.
    fn promises_broken(self: &Arc<Self>) {
        for shard in 0..SHARDS {
            self.carry_out(shard, Input::PromisesBroken, None);
        }
    }

    /// Tells who waits that the daemon stops, and deletes each file as soon as it is released.
    fn drain(self: &Arc<Self>) {
        for shard in 0..SHARDS {
            self.carry_out(shard, Input::Drain, None);
        }
    }

    /// How many locks are held, and how many requests wait.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (0..SHARDS).map(|shard| self.shard(shard).count()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The first names after `after` that are held or waited for, at most `count`, in order.
    #[must_use]
    pub fn names(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        let mut names: Vec<LockName> = Vec::new();
        for shard in 0..SHARDS {
            names.extend(self.shard(shard).names(after).take(count).cloned());
        }
        names.sort_unstable();
        names.truncate(count);
        names
    }

    /// Whether sessions of this daemon hold the name.
    fn holds(&self, name: &LockName) -> bool {
        self.shard(self.shard_of(name)).holds(name)
    }

    /// What is known of a name without asking the file system.
    #[must_use]
    pub fn view(&self, name: &LockName) -> Option<View> {
        self.shard(self.shard_of(name)).view(name)
    }
}
