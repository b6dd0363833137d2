//! An exhaustive model: one engine, its file operations taken step by step ([`Steps`], the
//! production code), a kernel of inodes with their locks, sessions that do anything they may, and a
//! contender, another process that takes the same steps for itself. Whenever the daemon is at rest,
//! it may hand over to its next process. Every interleaving is visited; a violation comes with the
//! shortest trace to it.
//!
//! Beyond the engine's own invariants the model checks what no single process can see:
//!
//! - **M1** A session and the contender never hold the name at the same time, unless both share it.
//! - **M2** A refusal is true: when a request is refused because another process holds the name,
//!   that process did hold it at some time since the request.
//! - **M3** Nothing stays behind: when nobody holds or wants the name, letting time pass removes
//!   its file.
//! - **M4** Fences rise, and the mark is not below them.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use distrilock_protocol::name::LockName;

use crate::fault::{Cause, Fault};
use crate::steps::call::CallResult;
use crate::steps::local::{Call, Next, Steps};
use crate::*;

/// An open file is known by the number of the process that opened it.
type FileId = u8;

const DAEMON: FileId = 0;
const CONTENDER: FileId = 1;

/// The kernel's side: which inode the name means, which inode each open file is, and who locks
/// what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Kernel {
    named: Option<u8>,
    open: BTreeMap<FileId, u8>,
    /// Which parts each open file has locked, for reading and for writing.
    locks: BTreeMap<FileId, Locked>,
    /// The fence in each file.
    fences: BTreeMap<u8, u64>,
    /// The mark of the fences.
    mark: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Locked {
    read: u16,
    write: u16,
}

/// The parts of a file, a bit each; the daemon's `files` says which bytes they are.
const BYTE_0: u16 = 1;
const REST: u16 = 2;
const TURN: u16 = 4;
const FENCE: u16 = 8;
const NUMBERS: u16 = 0xf0;
const ALL: u16 = 0xfff;

const fn number_part(of: u16) -> u16 {
    0x10 << (of - 1)
}

const fn slot_part(slot: u16) -> u16 {
    0x100 << slot
}

impl Kernel {
    /// A process has at most one file open, which has the number of the process: states do not
    /// differ in numbers alone.
    fn open_file(&mut self, process: FileId) -> FileId {
        let unused = |inode: &u8| !self.open.values().any(|used| used == inode);
        let inode = self.named.unwrap_or_else(|| (0..).find(unused).expect("there are inodes enough"));
        self.named = Some(inode);
        self.open.insert(process, inode);
        process
    }

    /// Renumbers the inodes, in the order of the open files: their numbers mean nothing.
    fn renumber(&mut self) {
        let used: BTreeSet<u8> = self.open.values().chain(&self.named).copied().collect();
        self.fences.retain(|inode, _| used.contains(inode));
        let fences = std::mem::take(&mut self.fences);
        let mut known: Vec<u8> = Vec::new();
        for inode in self.open.values_mut().chain(&mut self.named) {
            let place = known.iter().position(|seen| seen == inode).unwrap_or_else(|| {
                known.push(*inode);
                known.len() - 1
            });
            let old = *inode;
            *inode = u8::try_from(place).expect("there are few");
            self.fences.extend(fences.get(&old).map(|fence| (*inode, *fence)));
        }
    }

    /// What other processes have locked of the same file.
    fn others(&self, file: FileId) -> Locked {
        let same = |other: &&FileId| **other != file && self.open[*other] == self.open[&file];
        let locks = self.locks.keys().filter(same).map(|other| self.locks[other]);
        locks.fold(Locked::default(), |all, one| Locked { read: all.read | one.read, write: all.write | one.write })
    }

    fn conflicts(&self, file: FileId, parts: u16, mode: Mode) -> bool {
        let others = self.others(file);
        parts & others.write != 0 || (mode == Mode::Exclusive && parts & others.read != 0)
    }

    fn lock(&mut self, file: FileId, parts: u16, mode: Mode) -> bool {
        let free = !self.conflicts(file, parts, mode);
        if free {
            self.unlock(file, parts);
            let locked = self.locks.entry(file).or_default();
            if mode == Mode::Exclusive { locked.write |= parts } else { locked.read |= parts }
        }
        free
    }

    fn unlock(&mut self, file: FileId, parts: u16) {
        if let Some(locked) = self.locks.get_mut(&file) {
            *locked = Locked { read: locked.read & !parts, write: locked.write & !parts };
            if *locked == Locked::default() {
                self.locks.remove(&file);
            }
        }
    }

    /// In which mode a process has locked its file.
    fn mode_of(&self, file: FileId) -> Option<Mode> {
        let locked = self.locks.get(&file)?;
        let number = (locked.read & NUMBERS) >> 4;
        Some(match locked {
            _ if locked.write & (BYTE_0 | REST) != 0 => Mode::Exclusive,
            _ if number == NUMBERS >> 4 => Mode::Shared,
            _ if number != 0 => Mode::Slots(u16::try_from(number.trailing_zeros()).unwrap() + 1),
            _ => return None,
        })
    }

    fn uses(&self, file: FileId) -> CallResult {
        let others = self.others(file);
        let number = (others.read & NUMBERS) >> 4;
        match others {
            // A process that deletes the file locks all of it but byte 0.
            _ if others.write & NUMBERS != 0 && others.write & BYTE_0 == 0 => CallResult::No,
            _ if others.write & NUMBERS != 0 => CallResult::Uses(Mode::Exclusive),
            _ if number == NUMBERS >> 4 => CallResult::Uses(Mode::Shared),
            _ if number != 0 => CallResult::Uses(Mode::Slots(u16::try_from(number.trailing_zeros()).unwrap() + 1)),
            _ => CallResult::No,
        }
    }

    fn lock_number(&mut self, file: FileId, of: u16) -> CallResult {
        if self.conflicts(file, NUMBERS & !number_part(of), Mode::Exclusive) {
            return self.uses(file);
        }
        if self.lock(file, number_part(of), Mode::Shared) { CallResult::Yes } else { CallResult::No }
    }

    fn lock_slots(&mut self, file: FileId, of: u16, take: u16) -> CallResult {
        let mine = self.locks[&file].write;
        let free =
            |slot: &u16| mine & slot_part(*slot) == 0 && !self.conflicts(file, slot_part(*slot), Mode::Exclusive);
        let slots: Box<[u16]> = (0..of).filter(free).take(take.into()).collect();
        if slots.len() < take.into() {
            return CallResult::No;
        }
        slots.iter().for_each(|slot| assert!(self.lock(file, slot_part(*slot), Mode::Exclusive)));
        CallResult::Slots(slots)
    }

    /// The fence in the file, and the mark, whose file has a lock of its own.
    fn take_fence(&mut self, file: FileId, mode: Mode) -> CallResult {
        if mode != Mode::Exclusive && self.conflicts(file, FENCE, Mode::Exclusive) {
            return CallResult::Failed(Fault { cause: Cause::FenceBusy, path: "".into() });
        }
        let inode = self.open[&file];
        let following = fence::following(self.fences.get(&inode).copied(), self.mark);
        let (fence, mark) = following.expect("nobody forges fences in the model");
        self.fences.insert(inode, fence);
        self.mark = mark;
        CallResult::Fence(fence)
    }

    fn make(&mut self, process: FileId, call: Call, file: &mut Option<FileId>) -> CallResult {
        let yes = |done: bool| if done { CallResult::Yes } else { CallResult::No };
        let is_open = || file.expect("the steps use a file only while it is open");
        match call {
            Call::OpenToRead if self.named.is_none() => return CallResult::Gone,
            Call::Open | Call::OpenToRead => *file = Some(self.open_file(process)),
            Call::Lock(Mode::Shared) => {
                let locked = self.lock(is_open(), ALL & !FENCE, Mode::Shared);
                if locked {
                    self.unlock(is_open(), FENCE);
                }
                return yes(locked);
            }
            Call::Lock(mode) => return yes(self.lock(is_open(), ALL, mode)),
            Call::LockToDelete => return yes(self.lock(is_open(), ALL & !BYTE_0, Mode::Exclusive)),
            Call::LockTurn => return yes(self.lock(is_open(), TURN, Mode::Exclusive)),
            Call::UnlockTurn => self.unlock(is_open(), TURN),
            Call::LockHeld => return yes(self.lock(is_open(), BYTE_0 | REST, Mode::Shared)),
            Call::LockNumber(of) => return self.lock_number(is_open(), of),
            Call::LockSlots(of, take) => return self.lock_slots(is_open(), of, take),
            Call::UnlockSlots(first, count) => {
                (first..first + count).for_each(|slot| self.unlock(is_open(), slot_part(slot)));
            }
            Call::Uses => return self.uses(is_open()),
            Call::Fence(mode) => return self.take_fence(is_open(), mode),
            Call::Stamp(_) => unreachable!("stamps are not part of the model: they are no locks"),
            Call::Linked => return yes(self.named == self.open.get(&is_open()).copied()),
            Call::Check if self.named.is_none() => return CallResult::Gone,
            Call::Check => return yes(self.named == self.open.get(&is_open()).copied()),
            Call::Held(mode) => return yes(self.conflicts(is_open(), BYTE_0, mode)),
            Call::Yield => {}
            Call::Unlink if self.named.is_none() => return CallResult::Gone,
            Call::Unlink => self.named = None,
            Call::Unlock => self.unlock(is_open(), ALL),
            Call::Close => {
                self.unlock(is_open(), ALL);
                self.open.remove(&is_open());
                *file = None;
            }
        }
        CallResult::Yes
    }
}

/// A file operation between two of its steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnderWay {
    steps: Steps,
    next: Next,
    file: Option<FileId>,
}

impl UnderWay {
    fn begin(op: FileOp, file: Option<FileId>, locked: Option<Mode>) -> Self {
        let (steps, next) = Steps::begin(op, file.is_some(), locked);
        Self { steps, next, file }
    }

    /// Takes one step. Returns the outcome at the end.
    fn step(&mut self, process: FileId, kernel: &mut Kernel) -> Option<Outcome> {
        if let Next::Call(call) = self.next {
            self.next = self.steps.returned(kernel.make(process, call, &mut self.file));
        }
        match &self.next {
            Next::Call(_) => None,
            Next::End(outcome) => Some(outcome.clone()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Session {
    holds: Option<(Mode, Box<[u16]>)>,
    /// What it asked for, and whether the contender has held the name at some time since.
    asks: Option<(Want, bool)>,
    releasing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    engine: Engine<FileId>,
    kernel: Kernel,
    daemon: Option<UnderWay>,
    timers: BTreeSet<Timer>,
    sessions: Vec<Session>,
    contender: Option<UnderWay>,
    contender_file: Option<FileId>,
    contender_holds: Option<(Mode, Box<[u16]>)>,
    by_hand: bool,
    /// The highest fence that was granted, and how many were asked for.
    fence: u64,
    fences: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Acquire(usize, Want, bool),
    Withdraw(usize),
    Release(usize),
    Leave(usize),
    DaemonStep,
    HandOver,
    Elapse(Timer),
    Hint,
    Promised,
    ContenderBegins(FileOp),
    ContenderStep,
    ContenderDies,
    DeletedByHand,
}

/// What the sessions and the contender may do in one exploration.
struct Scope {
    sessions: usize,
    wants: &'static [Want],
    contender: &'static [Want],
    /// The greatest number of fences that are taken.
    fences: u64,
    linger_ms: u64,
    /// Whether requests are withdrawn, sessions leave and the contender is killed.
    ends: bool,
    by_hand: bool,
    /// Whether the daemon hands over to its next process.
    hands_over: bool,
}

fn name() -> LockName {
    LockName::parse(b"n").unwrap()
}

fn asked(session: usize) -> Asked {
    Asked { name: name(), session: SessionId(session as u64), request: RequestId(0) }
}

impl World {
    fn new(scope: &Scope) -> Self {
        Self {
            engine: Engine::new(Config {
                linger_ms: scope.linger_ms,
                linger_files_max: 1,
                linger_evicts: false,
                pace: Pace::LOCAL,
                history_from_ms: u64::MAX,
            }),
            kernel: Kernel::default(),
            daemon: None,
            timers: BTreeSet::new(),
            sessions: vec![Session::default(); scope.sessions],
            contender: None,
            contender_file: None,
            contender_holds: None,
            by_hand: scope.by_hand,
            fence: 0,
            fences: 0,
        }
    }

    fn actions(&self, scope: &Scope) -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, session) in self.sessions.iter().enumerate() {
            if session.asks.is_none() && !session.releasing {
                if session.holds.is_none() {
                    for want in scope.wants.iter().filter(|want| !want.fence || self.fences < scope.fences) {
                        actions.extend([false, true].map(|waits| Action::Acquire(n, *want, waits)));
                    }
                } else {
                    actions.push(Action::Release(n));
                }
            }
            if session.asks.is_some() && scope.ends {
                actions.push(Action::Withdraw(n));
            }
            if scope.ends && (session.asks.is_some() || session.holds.is_some() || session.releasing) {
                actions.push(Action::Leave(n));
            }
        }
        match self.daemon {
            Some(_) => actions.push(Action::DaemonStep),
            None if scope.hands_over => actions.push(Action::HandOver),
            None => {}
        }
        actions.extend(self.timers.iter().cloned().map(Action::Elapse));
        if self.engine.records.get(&name()).is_some_and(|record| record.contention.is_contended()) {
            actions.extend([Action::Hint, Action::Promised]);
        }
        match (&self.contender, &self.contender_holds) {
            (Some(_), _) => actions.push(Action::ContenderStep),
            (None, Some(_)) => actions.extend([FileOp::Unlock, FileOp::Retire].map(Action::ContenderBegins)),
            (None, None) => {
                actions.extend(self.contender_tries(scope));
                if self.contender_file.is_some() {
                    actions.push(Action::ContenderBegins(FileOp::Retire));
                }
            }
        }
        if scope.ends && (self.contender.is_some() || self.contender_file.is_some()) {
            actions.push(Action::ContenderDies);
        }
        if scope.by_hand && self.kernel.named.is_some() {
            actions.push(Action::DeletedByHand);
        }
        actions
    }

    fn contender_tries(&self, scope: &Scope) -> impl Iterator<Item = Action> {
        let wants = scope.contender.iter().filter(|want| !want.fence || self.fences < scope.fences);
        wants.map(|want| {
            Action::ContenderBegins(match want.extent {
                Extent::Slots { of, take } => FileOp::Take { of, take, joins: false, fence: want.fence },
                extent if want.fence => FileOp::TryFence(extent.mode()),
                extent => FileOp::Try(extent.mode()),
            })
        })
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Acquire(n, want, wait) => {
                self.sessions[*n].asks = Some((*want, self.contender_has_it()));
                self.fences += u64::from(want.fence);
                self.input(Input::Acquire { asked: asked(*n), want: *want, wait: *wait });
            }
            Action::Withdraw(n) => self.input(Input::Withdraw { asked: asked(*n), why: Withdrawal::Cancelled }),
            Action::Release(n) => {
                self.sessions[*n].holds = None;
                self.sessions[*n].releasing = true;
                // One of the sessions speaks version 0.1.
                let release = if *n == 0 { Input::ReleaseAndLook } else { Input::Release };
                self.input(release(asked(*n)));
            }
            Action::Leave(n) => {
                self.sessions[*n] = Session::default();
                self.input(Input::Leave { name: name(), session: SessionId(*n as u64) });
            }
            Action::DaemonStep => self.daemon_step(),
            Action::HandOver => self.hand_over(),
            Action::Elapse(timer) => {
                self.timers.remove(timer);
                self.input(Input::Elapsed(timer.clone()));
            }
            Action::Hint => self.input(Input::Hint(name())),
            Action::Promised => self.input(Input::Promised(name())),
            Action::ContenderBegins(op) => {
                let locked = self.contender_holds.take().map(|(mode, _)| mode);
                self.fences += u64::from(matches!(op, FileOp::TryFence(_) | FileOp::Take { fence: true, .. }));
                self.contender = Some(UnderWay::begin(*op, self.contender_file.take(), locked));
            }
            Action::ContenderStep => self.contender_step(),
            Action::ContenderDies => {
                let under_way = self.contender.take().and_then(|under_way| under_way.file);
                for file in under_way.into_iter().chain(self.contender_file.take()) {
                    self.kernel.unlock(file, ALL);
                    self.kernel.open.remove(&file);
                }
                self.contender_holds = None;
            }
            Action::DeletedByHand => self.kernel.named = None,
        }
        self.kernel.renumber();
        let has_it = self.contender_has_it();
        for session in &mut self.sessions {
            if let Some((_, contender_had_it)) = &mut session.asks {
                *contender_had_it |= has_it;
            }
        }
    }

    /// Whether the contender locks byte 0 of the file that the name means: it holds the name, or is
    /// about to find out that it does.
    fn contender_has_it(&self) -> bool {
        let files = [self.contender_file, self.contender.as_ref().and_then(|under_way| under_way.file)];
        files.into_iter().flatten().any(|file| {
            let locked = self.kernel.locks.get(&file).copied().unwrap_or_default();
            (locked.read | locked.write) & BYTE_0 != 0 && self.kernel.open.get(&file).copied() == self.kernel.named
        })
    }

    fn contender_step(&mut self) {
        let mut under_way = self.contender.take().expect("the contender has an operation under way");
        let Some(outcome) = under_way.step(CONTENDER, &mut self.kernel) else {
            self.contender = Some(under_way);
            return;
        };
        self.contender_file = under_way.file;
        let file = || under_way.file.expect("a locked file is open");
        match outcome {
            Outcome::Locked => self.contender_holds = self.kernel.mode_of(file()).map(|mode| (mode, Box::default())),
            Outcome::Fenced(Ok(fence)) => {
                self.contender_holds = self.kernel.mode_of(file()).map(|mode| (mode, Box::default()));
                self.rises(fence);
            }
            Outcome::Taken { slots, fence } => {
                self.contender_holds = self.kernel.mode_of(file()).map(|mode| (mode, slots));
                fence.into_iter().for_each(|fence| self.rises(fence.expect("nothing fails in the model")));
            }
            Outcome::Fenced(Err(fault)) => panic!("{fault}"),
            _ => {}
        }
    }

    fn rises(&mut self, fence: u64) {
        assert!(fence > self.fence && fence <= self.kernel.mark, "M4: fence {fence} after {}", self.fence);
        self.fence = fence;
    }

    fn daemon_step(&mut self) {
        let mut under_way = self.daemon.take().expect("the daemon has an operation under way");
        match under_way.step(DAEMON, &mut self.kernel) {
            Some(outcome) => self.input(Input::Done { name: name(), file: under_way.file, outcome }),
            None => self.daemon = Some(under_way),
        }
    }

    /// The daemon's next process takes over, with timers of its own.
    fn hand_over(&mut self) {
        let handed = self.engine.hand_over();
        self.engine = Engine::new(self.engine.config.clone());
        self.timers.clear();
        for handed in handed {
            let mut effects = Vec::new();
            self.engine.take_over(handed, |_| true, &mut effects);
            self.follow(effects);
        }
    }

    fn input(&mut self, input: Input<FileId>) {
        let mut effects = Vec::new();
        self.engine.input(input, &mut effects);
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect<FileId>>) {
        for effect in effects {
            match effect {
                Effect::File { op, file, .. } => {
                    assert!(self.daemon.is_none(), "I4: two operations in flight");
                    let locked = file.and_then(|file| self.kernel.mode_of(file));
                    self.daemon = Some(UnderWay::begin(op, file, locked));
                }
                Effect::Answer { session, answer, .. } => self.answered(usize::try_from(session.0).unwrap(), answer),
                Effect::Lost { session, .. } => self.sessions[usize::try_from(session.0).unwrap()].holds = None,
                Effect::Past { .. } => unreachable!("no model keeps a history"),
                Effect::Doubt { .. } => unreachable!("no model has a file server that is silent"),
                Effect::Arm(timer, _) => {
                    self.timers.insert(timer);
                }
                Effect::Contended(_) => {}
            }
        }
    }

    fn answered(&mut self, n: usize, answer: Answer) {
        if let Answer::Granted { fence: Some(fence), .. } = answer {
            self.rises(fence);
        }
        let others = self.sessions.iter().any(|session| session.holds.is_some() || session.releasing);
        let session = &mut self.sessions[n];
        match answer {
            Answer::Released { .. } => assert!(std::mem::take(&mut session.releasing), "I6: a release answered twice"),
            answer => {
                let (want, contender_had_it) = session.asks.take().expect("I6: an answer without a question");
                match answer {
                    Answer::Granted { mode, already: false, slots, fence } => {
                        assert_eq!(
                            (mode, slots.len(), fence.is_some()),
                            (want.mode(), want.extent.slots().into(), want.fence)
                        );
                        session.holds = Some((mode, slots));
                    }
                    Answer::BusyElsewhere | Answer::Disagrees { .. } if contender_had_it => {}
                    Answer::Disagrees { .. } => assert!(others, "M2: refused, but nobody held it"),
                    Answer::BusyElsewhere => {
                        assert!(contender_had_it || self.by_hand, "M2: refused, but nobody held it")
                    }
                    Answer::BusyHere(_) | Answer::Cancelled | Answer::Storage(_) => {}
                    answer => panic!("{answer:?} answers no acquire"),
                }
            }
        }
    }

    fn check(&self, scope: &Scope) {
        self.engine.check_all();
        let held = || self.sessions.iter().filter_map(|session| session.holds.as_ref());
        for (mode, slots) in held() {
            if let Some((theirs, their_slots)) = &self.contender_holds {
                let apart = matches!(mode, Mode::Slots(_)) && !slots.iter().any(|slot| their_slots.contains(slot));
                let fits = mode == theirs && (*mode == Mode::Shared || apart);
                assert!(fits || scope.by_hand, "M1: a session and the contender hold the name");
            }
        }
        let mut slots: Vec<u16> =
            held().chain(&self.contender_holds).flat_map(|(_, slots)| slots.iter().copied()).collect();
        let count = slots.len();
        slots.sort_unstable();
        slots.dedup();
        assert!(slots.len() == count || scope.by_hand, "M1: a slot is held twice");
        let wanted = self.sessions.iter().any(|session| *session != Session::default());
        let contender = self.contender.is_some() || self.contender_file.is_some();
        if !wanted && !contender && self.daemon.is_none() && self.timers.is_empty() {
            let clean = self.kernel.open.is_empty() && (scope.by_hand || self.engine.records.is_empty());
            assert!(clean, "M3: something stays behind");
            // Nobody deletes what a process leaves that was killed while it used the file last.
            assert!(self.kernel.named.is_none() || scope.ends, "M3: a lock file stays behind");
        }
    }
}

/// A scope with more states than this takes too long to explore.
const STATES_MAX: usize = 6_000_000;

/// Represents a state, since there are too many states to keep. Among some millions, no two will
/// have the same 128 bits.
fn digest<S: Hash>(state: &S) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, state).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Visits every state that can be reached, and returns how many there are.
pub(crate) fn explore<S: Clone + Eq + Hash, A: Clone + std::fmt::Debug>(
    start: S,
    actions: impl Fn(&S) -> Vec<A>,
    act: impl Fn(&mut S, &A),
    check: impl Fn(&S),
) -> usize {
    let mut seen: HashSet<u128> = HashSet::from([digest(&start)]);
    // How each state was reached; the state itself is kept until it has been visited.
    let mut steps: Vec<Option<(usize, A)>> = vec![None];
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((at, before)) = queue.pop_front() {
        for action in actions(&before) {
            let mut state = before.clone();
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                act(&mut state, &action);
                check(&state);
            }));
            if fine.is_err() {
                let mut trace = vec![action];
                let mut step = steps[at].clone();
                while let Some((before, action)) = step {
                    trace.insert(0, action);
                    step = steps[before].clone();
                }
                panic!("violated after {trace:?}");
            }
            if seen.insert(digest(&state)) {
                steps.push(Some((at, action)));
                assert!(steps.len() < STATES_MAX, "the model has outgrown its bounds");
                queue.push_back((steps.len() - 1, state));
            }
        }
    }
    steps.len()
}

const fn want(extent: Extent, fence: bool) -> Want {
    Want { extent, fence }
}

const fn slots(of: u16, take: u16) -> Extent {
    Extent::Slots { of, take }
}

const SHARED: Want = want(Extent::Shared, false);
const EXCLUSIVE: Want = want(Extent::Exclusive, false);
const ONE_OF_TWO: Want = want(slots(2, 1), false);
const TWO_OF_TWO: Want = want(slots(2, 2), false);
const THE_ONE: Want = want(slots(1, 1), false);

const PLAIN: Scope = Scope {
    sessions: 1,
    wants: &[EXCLUSIVE],
    contender: &[],
    fences: 0,
    linger_ms: 0,
    ends: false,
    by_hand: false,
    hands_over: true,
};

/// With half as many states again, every run of the tests would take too long.
const HANDS_OVER_IN_LARGER_SCOPES: bool = cfg!(feature = "system-tests");

/// A session and a contender are killed or give up anywhere; released files linger.
#[test]
fn ends_and_linger() {
    let hands_over = HANDS_OVER_IN_LARGER_SCOPES;
    explored(&Scope { contender: &[EXCLUSIVE], linger_ms: 2000, ends: true, hands_over, ..PLAIN });
}

/// A session shares or excludes, against a contender that does either; released files are deleted
/// at once.
#[test]
fn shared_and_exclusive() {
    explored(&Scope { wants: &[SHARED, EXCLUSIVE], contender: &[SHARED, EXCLUSIVE], ..PLAIN });
}

/// Three sessions of one daemon share or exclude, without a contender: queues, turns, withdrawals.
#[test]
fn three_sessions() {
    explored(&Scope { sessions: 3, wants: &[SHARED, EXCLUSIVE], ends: true, ..PLAIN });
}

/// Somebody deletes lock files by hand: exclusion between processes is gone, the engine's own
/// invariants are not.
#[test]
fn files_deleted_by_hand() {
    explored(&Scope { sessions: 2, wants: &[SHARED, EXCLUSIVE], linger_ms: 2000, by_hand: true, ..PLAIN });
}

/// Two sessions of one daemon and a contender compete for a name, exclusively.
#[cfg(feature = "system-tests")]
#[test]
fn two_sessions_with_a_contender() {
    explored(&Scope { sessions: 2, contender: &[EXCLUSIVE], hands_over: false, ..PLAIN });
}

/// Two sessions want one of two slots, or both, or the name for themselves, without a contender.
#[test]
fn slots_of_two_sessions() {
    explored(&Scope { sessions: 2, wants: &[ONE_OF_TWO, TWO_OF_TWO, EXCLUSIVE], ends: true, ..PLAIN });
}

/// A session and a contender want one of two slots, or both; then either may be killed as well.
#[test]
fn slots_with_a_contender() {
    explored(&Scope { wants: &[ONE_OF_TWO, TWO_OF_TWO], contender: &[ONE_OF_TWO, TWO_OF_TWO], ..PLAIN });
    explored(&Scope { wants: &[ONE_OF_TWO], contender: &[ONE_OF_TWO], ends: true, ..PLAIN });
}

/// Slots, another number of slots, shared and exclusive: each against each of them of a contender.
#[test]
fn slots_and_all_else() {
    const ALL_MODES: &[Want] = &[ONE_OF_TWO, THE_ONE, SHARED, EXCLUSIVE];
    explored(&Scope { wants: ALL_MODES, contender: ALL_MODES, ..PLAIN });
}

/// Two sessions and a contender want one of two slots each.
#[cfg(feature = "system-tests")]
#[test]
fn slots_of_two_sessions_with_a_contender() {
    let (wants, contender) = (&[ONE_OF_TWO], &[ONE_OF_TWO]);
    explored(&Scope { sessions: 2, wants, contender, hands_over: false, ..PLAIN });
}

/// Files with slots are deleted by hand.
#[test]
fn slots_deleted_by_hand() {
    explored(&Scope { sessions: 2, wants: &[ONE_OF_TWO, EXCLUSIVE], linger_ms: 2000, by_hand: true, ..PLAIN });
}

const FENCED: Want = want(Extent::Exclusive, true);
const SHARED_FENCED: Want = want(Extent::Shared, true);
const SLOT_FENCED: Want = want(slots(2, 1), true);

/// Fences rise regardless of who takes them and in which mode, while files are deleted at once.
#[test]
fn fences_rise() {
    explored(&Scope { wants: &[FENCED], contender: &[FENCED], fences: 3, ..PLAIN });
    explored(&Scope { wants: &[SHARED_FENCED], contender: &[SHARED_FENCED], fences: 3, ..PLAIN });
    explored(&Scope { wants: &[SLOT_FENCED], contender: &[SLOT_FENCED], fences: 3, ..PLAIN });
    explored(&Scope { sessions: 2, wants: &[SHARED, SHARED_FENCED, FENCED], fences: 3, ..PLAIN });
}

/// Fences rise although lock files are deleted by hand.
#[test]
fn fences_rise_over_deletions_by_hand() {
    explored(&Scope { sessions: 2, wants: &[FENCED], fences: 4, by_hand: true, linger_ms: 2000, ..PLAIN });
}

fn explored(scope: &Scope) {
    let start = std::time::Instant::now();
    let states = explore(World::new(scope), |world| world.actions(scope), World::act, |world| world.check(scope));
    println!("{states} states in {:?}", start.elapsed());
    assert!(states > 1000, "the model explores next to nothing");
}
