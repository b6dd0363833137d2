//! An exhaustive model: one engine, its file operations taken step by step ([`Steps`], the production code), a kernel of
//! inodes with their locks, sessions that do whatever they may, and a contender, another process that takes the same steps for
//! itself. Every interleaving is visited; a violation comes with the shortest way to it.
//!
//! Beyond the engine's own invariants the model checks what no single process can see:
//!
//! - **M1** A session and the contender never hold the name at the same time, unless both share it.
//! - **M2** A refusal is true: when a request is refused because another process holds the name, that process did hold it at
//!   some time since the request.
//! - **M3** Nothing stays behind: when nobody holds or wants the name, letting time pass removes its file.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::Hash;

use super::*;
use crate::files::local::{self, Call, Next, Steps};

/// An open file has the number of the process that opened it.
type FileId = u8;

const DAEMON: FileId = 0;
const CONTENDER: FileId = 1;

/// The kernel's side: which inode the name means, which inode each open file is, and who locks what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Kernel {
    named: Option<u8>,
    open: BTreeMap<FileId, u8>,
    /// Locks on byte 0 and on the rest of the file, by open file.
    locks: BTreeMap<(FileId, bool), Mode>,
}

impl Kernel {
    /// A process has one file open at most, whose number is the process's: states that differ in numbers only are one.
    fn open_file(&mut self, process: FileId) -> FileId {
        let unused = |inode: &u8| !self.open.values().any(|used| used == inode);
        let inode = self.named.unwrap_or_else(|| (0..).find(unused).expect("there are inodes enough"));
        self.named = Some(inode);
        self.open.insert(process, inode);
        process
    }

    /// Numbers the inodes anew in the order of the files that are open: which number they have means nothing.
    fn renumber(&mut self) {
        let mut known: Vec<u8> = Vec::new();
        for inode in self.open.values_mut().chain(&mut self.named) {
            let place = known.iter().position(|seen| seen == inode).unwrap_or_else(|| {
                known.push(*inode);
                known.len() - 1
            });
            *inode = u8::try_from(place).expect("there are few");
        }
    }

    fn conflicts(&self, file: FileId, rest: bool, mode: Mode) -> bool {
        self.locks.iter().any(|((other, part), held)| {
            *other != file
                && *part == rest
                && self.open[other] == self.open[&file]
                && (*held == Mode::Exclusive || mode == Mode::Exclusive)
        })
    }

    fn lock(&mut self, file: FileId, parts: &[bool], mode: Mode) -> bool {
        let free = !parts.iter().any(|part| self.conflicts(file, *part, mode));
        if free {
            self.locks.extend(parts.iter().map(|part| ((file, *part), mode)));
        }
        free
    }

    fn unlock(&mut self, file: FileId) {
        self.locks.retain(|(locked, _), _| *locked != file);
    }

    fn make(&mut self, process: FileId, call: Call, file: &mut Option<FileId>) -> local::Answer {
        let yes = |done: bool| if done { local::Answer::Yes } else { local::Answer::No };
        let is_open = || file.expect("the steps use a file only while it is open");
        match call {
            Call::OpenToRead if self.named.is_none() => return local::Answer::Gone,
            Call::Open | Call::OpenToRead => *file = Some(self.open_file(process)),
            Call::Lock(mode) => return yes(self.lock(is_open(), &[false, true], mode)),
            Call::LockToDelete => return yes(self.lock(is_open(), &[true], Mode::Exclusive)),
            Call::Linked => return yes(self.named == self.open.get(&is_open()).copied()),
            Call::Check if self.named.is_none() => return local::Answer::Gone,
            Call::Check => return yes(self.named == self.open.get(&is_open()).copied()),
            Call::Held(mode) => return yes(self.conflicts(is_open(), false, mode)),
            Call::Yield => {}
            Call::Unlink if self.named.is_none() => return local::Answer::Gone,
            Call::Unlink => self.named = None,
            Call::Unlock => self.unlock(is_open()),
            Call::Close => {
                self.unlock(is_open());
                self.open.remove(&is_open());
                *file = None;
            }
        }
        local::Answer::Yes
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

    /// Takes one step; tells the outcome at the end.
    fn step(&mut self, process: FileId, kernel: &mut Kernel) -> Option<Outcome> {
        if let Next::Call(call) = self.next {
            self.next = self.steps.answered(kernel.make(process, call, &mut self.file));
        }
        match &self.next {
            Next::Call(_) => None,
            Next::End(outcome) => Some(outcome.clone()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Session {
    holds: Option<Mode>,
    /// What it waits to hear, and whether the contender held the name at some time since it asked.
    asks: Option<(Mode, bool)>,
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
    contender_holds: Option<Mode>,
    by_hand: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Acquire(usize, Mode, bool),
    Withdraw(usize),
    Release(usize),
    Leave(usize),
    DaemonStep,
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
    modes: &'static [Mode],
    contender: &'static [Mode],
    linger_ms: u64,
    /// Whether requests are withdrawn, sessions leave and the contender is killed.
    ends: bool,
    by_hand: bool,
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
            engine: Engine::new(Config { linger_ms: scope.linger_ms, linger_files_max: 1, pace: Pace::LOCAL }),
            kernel: Kernel::default(),
            daemon: None,
            timers: BTreeSet::new(),
            sessions: vec![Session::default(); scope.sessions],
            contender: None,
            contender_file: None,
            contender_holds: None,
            by_hand: scope.by_hand,
        }
    }

    fn actions(&self, scope: &Scope) -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, session) in self.sessions.iter().enumerate() {
            if session.asks.is_none() && !session.releasing {
                if session.holds.is_none() {
                    for mode in scope.modes {
                        actions.extend([false, true].map(|waits| Action::Acquire(n, *mode, waits)));
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
        if self.daemon.is_some() {
            actions.push(Action::DaemonStep);
        }
        actions.extend(self.timers.iter().cloned().map(Action::Elapse));
        if self.engine.records.get(&name()).is_some_and(|record| record.contended) {
            actions.extend([Action::Hint, Action::Promised]);
        }
        match (&self.contender, self.contender_holds) {
            (Some(_), _) => actions.push(Action::ContenderStep),
            (None, Some(_)) => actions.extend([FileOp::Unlock, FileOp::Retire].map(Action::ContenderBegins)),
            (None, None) => {
                actions.extend(scope.contender.iter().map(|mode| Action::ContenderBegins(FileOp::Try(*mode))));
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

    fn act(&mut self, action: &Action) {
        match action {
            Action::Acquire(n, mode, wait) => {
                self.sessions[*n].asks = Some((*mode, self.contender_has_it()));
                self.input(Input::Acquire { asked: asked(*n), mode: *mode, wait: *wait });
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
            Action::Elapse(timer) => {
                self.timers.remove(timer);
                self.input(Input::Elapsed(timer.clone()));
            }
            Action::Hint => self.input(Input::Hint(name())),
            Action::Promised => self.input(Input::Promised(name())),
            Action::ContenderBegins(op) => {
                let locked = self.contender_holds.take();
                self.contender = Some(UnderWay::begin(*op, self.contender_file.take(), locked));
            }
            Action::ContenderStep => self.contender_step(),
            Action::ContenderDies => {
                let under_way = self.contender.take().and_then(|under_way| under_way.file);
                for file in under_way.into_iter().chain(self.contender_file.take()) {
                    self.kernel.unlock(file);
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

    /// The contender locks byte 0 of the file that the name means: it holds the name, or is about to find that it does.
    fn contender_has_it(&self) -> bool {
        let files = [self.contender_file, self.contender.as_ref().and_then(|under_way| under_way.file)];
        files.into_iter().flatten().any(|file| {
            self.kernel.locks.contains_key(&(file, false)) && self.kernel.open.get(&file).copied() == self.kernel.named
        })
    }

    fn contender_step(&mut self) {
        let mut under_way = self.contender.take().expect("the contender has an operation under way");
        let Some(outcome) = under_way.step(CONTENDER, &mut self.kernel) else {
            self.contender = Some(under_way);
            return;
        };
        self.contender_file = under_way.file;
        if outcome == Outcome::Locked {
            let file = under_way.file.expect("a locked file is open");
            self.contender_holds = Some(self.kernel.locks[&(file, false)]);
        }
    }

    fn daemon_step(&mut self) {
        let mut under_way = self.daemon.take().expect("the daemon has an operation under way");
        match under_way.step(DAEMON, &mut self.kernel) {
            Some(outcome) => self.input(Input::Done { name: name(), file: under_way.file, outcome }),
            None => self.daemon = Some(under_way),
        }
    }

    fn input(&mut self, input: Input<FileId>) {
        let mut effects = Vec::new();
        self.engine.input(input, &mut effects);
        for effect in effects {
            match effect {
                Effect::File { op, file, .. } => {
                    assert!(self.daemon.is_none(), "I4: two operations in flight");
                    let locked = file.and_then(|file| self.kernel.locks.get(&(file, false)).copied());
                    self.daemon = Some(UnderWay::begin(op, file, locked));
                }
                Effect::Answer { session, answer, .. } => self.answered(usize::try_from(session.0).unwrap(), answer),
                Effect::Lost { session, .. } => self.sessions[usize::try_from(session.0).unwrap()].holds = None,
                Effect::Doubt { .. } => unreachable!("no model has a file server that is silent"),
                Effect::Arm(timer, _) => {
                    self.timers.insert(timer);
                }
                Effect::Contended(_) => {}
            }
        }
    }

    fn answered(&mut self, n: usize, answer: Answer) {
        let session = &mut self.sessions[n];
        match answer {
            Answer::Released { .. } => assert!(std::mem::take(&mut session.releasing), "I6: a release answered twice"),
            answer => {
                let (mode, contender_had_it) = session.asks.take().expect("I6: an answer without a question");
                match answer {
                    Answer::Granted { mode: granted, already: false } => {
                        assert_eq!(granted, mode);
                        session.holds = Some(mode);
                    }
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
        for session in &self.sessions {
            if let (Some(mine), Some(theirs)) = (session.holds, self.contender_holds) {
                let shared = mine == Mode::Shared && theirs == Mode::Shared;
                assert!(shared || scope.by_hand, "M1: a session and the contender hold the name");
            }
        }
        let wanted = self.sessions.iter().any(|session| *session != Session::default());
        let contender = self.contender.is_some() || self.contender_file.is_some();
        if !wanted && !contender && self.daemon.is_none() && self.timers.is_empty() {
            let clean = self.kernel.open.is_empty() && (scope.by_hand || self.engine.records.is_empty());
            assert!(clean, "M3: something stays behind");
        }
    }
}

/// A scope that leads to more states than this takes too long to explore.
const STATES_MAX: usize = 3_000_000;

/// Visits every state that can be reached; tells how many there are.
pub(crate) fn explore<S: Clone + Eq + Hash, A: Clone + std::fmt::Debug>(
    start: S,
    actions: impl Fn(&S) -> Vec<A>,
    act: impl Fn(&mut S, &A),
    check: impl Fn(&S),
) -> usize {
    let mut seen: HashSet<S> = HashSet::from([start.clone()]);
    let mut order: Vec<(S, Option<(usize, A)>)> = vec![(start, None)];
    let mut queue = VecDeque::from([0]);
    while let Some(at) = queue.pop_front() {
        for action in actions(&order[at].0) {
            let mut state = order[at].0.clone();
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                act(&mut state, &action);
                check(&state);
            }));
            if fine.is_err() {
                let mut trace = vec![action];
                let mut step = order[at].1.clone();
                while let Some((before, action)) = step {
                    trace.insert(0, action);
                    step = order[before].1.clone();
                }
                panic!("violated after {trace:?}");
            }
            if seen.insert(state.clone()) {
                order.push((state, Some((at, action))));
                assert!(order.len() < STATES_MAX, "the model has outgrown its bounds");
                queue.push_back(order.len() - 1);
            }
        }
    }
    order.len()
}

const BOTH: &[Mode] = &[Mode::Shared, Mode::Exclusive];
const EXCLUSIVE: &[Mode] = &[Mode::Exclusive];

/// A session and a contender that are killed or give up anywhere; released files linger.
#[test]
fn ends_and_linger() {
    let scope =
        Scope { sessions: 1, modes: EXCLUSIVE, contender: EXCLUSIVE, linger_ms: 2000, ends: true, by_hand: false };
    explored(&scope);
}

/// A session that shares or excludes, against a contender that does either; released files are deleted at once.
#[test]
fn shared_and_exclusive() {
    let scope = Scope { sessions: 1, modes: BOTH, contender: BOTH, linger_ms: 0, ends: false, by_hand: false };
    explored(&scope);
}

/// Three sessions of one daemon, shared and exclusive, without a contender: queues, turns, withdrawals.
#[test]
fn three_sessions() {
    let scope = Scope { sessions: 3, modes: BOTH, contender: &[], linger_ms: 0, ends: true, by_hand: false };
    explored(&scope);
}

/// Somebody deletes lock files by hand: exclusion between processes is gone, the engine's own invariants are not.
#[test]
fn files_deleted_by_hand() {
    let scope = Scope { sessions: 2, modes: BOTH, contender: &[], linger_ms: 2000, ends: false, by_hand: true };
    explored(&scope);
}

/// Two sessions of one daemon and a contender fight for a name, exclusively.
#[cfg(feature = "system-tests")]
#[test]
fn two_sessions_with_a_contender() {
    let scope =
        Scope { sessions: 2, modes: EXCLUSIVE, contender: EXCLUSIVE, linger_ms: 0, ends: false, by_hand: false };
    explored(&scope);
}

fn explored(scope: &Scope) {
    let start = std::time::Instant::now();
    let states = explore(World::new(scope), |world| world.actions(scope), World::act, |world| world.check(scope));
    println!("{states} states in {:?}", start.elapsed());
    assert!(states > 1000, "the model explores next to nothing");
}
