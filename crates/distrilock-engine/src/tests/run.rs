//! Random runs of the engine, judged from outside: by its inputs and its answers, not by its state.
//! Bytes choose the steps, so that both proptest and a fuzzer (`fuzz/fuzz_targets/operations.rs`,
//! which includes this file) can steer a run.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Answer, Asked, Cause, Config, Effect, Engine, Extent, Fault, FileOp, Input, LockName, Mode, Operation, Outcome,
    Pace, RequestId, SessionId, Timer, Want, Withdrawal,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const SESSIONS: u8 = 4;

/// If something still moves after this many rounds of completions and timers, the engine does not
/// come to rest.
const ROUNDS_MAX: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Acquire, by a session that does not hold the name.
    Enter(Want, bool),
    /// Acquire, by a session that already holds it with the second of these.
    Again(Want, Want),
    /// Release, by a session that holds it alone or has slots, shares it with others, or does not
    /// hold it at all.
    Release(HeldBefore),
    Verify,
    Peek,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldBefore {
    Itself,
    WithOthers,
    Not,
}

/// One name, as its sessions know it.
#[derive(Debug, Default)]
struct Outside {
    /// Sessions that were granted it and have not asked to release it.
    holders: BTreeMap<SessionId, (Want, Box<[u16]>)>,
    /// Slots whose bytes are locked.
    slots: BTreeSet<u16>,
    /// Requests that are waiting to be granted it, first come first.
    queue: Vec<(SessionId, RequestId)>,
    /// Questions without an answer.
    questions: BTreeMap<(SessionId, RequestId), Question>,
    in_flight: Option<(FileOp, Option<u32>)>,
}

struct Run {
    engine: Engine<u32>,
    config: Config,
    names: BTreeMap<LockName, Outside>,
    timers: BTreeSet<Timer>,
    /// Files that are open.
    open: BTreeSet<u32>,
    next_file: u32,
    next_request: u64,
    draining: bool,
    /// How many fences were taken so far, which are numbered from 1 on, and which of them were
    /// granted.
    fences: u64,
    granted: BTreeSet<u64>,
    /// What the last input showed: that a name's file is locked in a mode (I3).
    shown: Option<(LockName, Mode)>,
    /// The name of the last input, if it was a completion (I9).
    completed: Option<LockName>,
}

/// Takes the steps, then lets everything come to an end.
///
/// # Panics
/// If the engine, or what it answers, breaks a rule.
pub(super) fn run([linger, evicts]: [bool; 2], steps: impl IntoIterator<Item = [u8; 3]>) {
    let linger_ms = if linger { 2000 } else { 0 };
    let config =
        Config { linger_ms, linger_files_max: 2, linger_evicts: evicts, pace: Pace::LOCAL, history_from_ms: u64::MAX };
    let name = |text: &str| LockName::parse(text.as_bytes()).expect("the names of a run are valid");
    let mut run = Run {
        engine: Engine::new(config.clone()),
        config,
        names: NAMES.iter().map(|text| (name(text), Outside::default())).collect(),
        timers: BTreeSet::new(),
        open: BTreeSet::new(),
        next_file: 0,
        next_request: 0,
        draining: false,
        fences: 0,
        granted: BTreeSet::new(),
        shown: None,
        completed: None,
    };
    for step in steps {
        run.step(step);
    }
    run.end();
}

/// What an acquire wants, by the bits of a byte.
fn want(how: u8) -> Want {
    let extent = match (how >> 2) % 4 {
        1 => Extent::Slots { of: 2, take: 1 + u16::from(how & 1) },
        2 => Extent::Slots { of: 2 + u16::from(how & 1), take: 1 },
        _ if how & 1 == 0 => Extent::Shared,
        _ => Extent::Exclusive,
    };
    Want { extent, fence: how & 32 != 0 }
}

impl Run {
    fn step(&mut self, [what, who, how]: [u8; 3]) {
        let name = self.name(who / SESSIONS);
        let session = SessionId(u64::from(who % SESSIONS));
        match what % 16 {
            0..4 => self.acquire(name, session, want(how), how & 2 == 0),
            4 | 5 => self.release(name, session),
            6 => self.ask(name, session, Question::Verify, Input::Verify),
            7 => self.ask(name, session, Question::Peek, Input::Peek),
            8 => self.withdraw(&name, session, how),
            9 => self.leave(name, session),
            10..14 => self.complete(&name, how),
            14 => self.elapse(who, how),
            _ => match how {
                0..2 => {
                    self.draining = true;
                    self.input(Input::Drain);
                }
                2..50 => self.input(Input::Shed),
                50..70 => self.input(Input::Hint(name)),
                70..90 => self.input(Input::Promised(name)),
                90..100 => self.input(Input::PromisesBroken),
                100..130 => {
                    let fault = Fault { cause: Cause::ServerSilent, path: "".into() };
                    self.input(Input::Stalled { name, fault });
                }
                130..160 => self.input(Input::Probe(name)),
                160..170 => self.input(Input::Silence("silent")),
                170..180 => self.input(Input::Suspect(1000)),
                180..190 => self.input(Input::Trust),
                190..210 => self.hand_over(how),
                _ => self.input(Input::Now(how.into())),
            },
        }
    }

    fn name(&self, number: u8) -> LockName {
        let place = usize::from(number) % NAMES.len();
        self.names.keys().nth(place).expect("the place is one of the names").clone()
    }

    fn outside(&mut self, name: &LockName) -> &mut Outside {
        self.names.get_mut(name).expect("the engine speaks of names that it was told")
    }

    fn ask(&mut self, name: LockName, session: SessionId, question: Question, input: impl FnOnce(Asked) -> Input<u32>) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let asked = Asked { name, session, request };
        self.outside(&asked.name).questions.insert((session, request), question);
        self.input(input(asked));
    }

    /// The session layer allows a session one acquire of a name at a time (I8).
    fn acquire(&mut self, name: LockName, session: SessionId, want: Want, wait: bool) {
        let outside = self.outside(&name);
        let acquires = |question: &Question| matches!(question, Question::Enter(..) | Question::Again(..));
        if outside.questions.iter().any(|((asking, _), question)| *asking == session && acquires(question)) {
            return;
        }
        let request = RequestId(self.next_request);
        let outside = self.outside(&name);
        let question = match outside.holders.get(&session) {
            Some((held, _)) => Question::Again(want, *held),
            None => Question::Enter(want, wait),
        };
        if let Question::Enter(..) = question {
            outside.queue.push((session, request));
        }
        self.ask(name, session, question, |asked| Input::Acquire { asked, want, wait });
    }

    fn release(&mut self, name: LockName, session: SessionId) {
        let outside = self.outside(&name);
        let held = match (outside.holders.remove(&session), outside.holders.len()) {
            (None, _) => HeldBefore::Not,
            (Some((Want { extent: Extent::Shared, .. }, _)), 1..) => HeldBefore::WithOthers,
            (Some(_), _) => HeldBefore::Itself,
        };
        self.ask(name, session, Question::Release(held), Input::Release);
    }

    /// Withdraws a request that waits, or one that was answered long ago.
    fn withdraw(&mut self, name: &LockName, session: SessionId, how: u8) {
        let waiting = self.outside(name).queue.iter().find(|(waiting, _)| *waiting == session).copied();
        let request = waiting.map_or(RequestId(0), |(_, request)| request);
        let why = if how & 1 == 0 { Withdrawal::Cancelled } else { Withdrawal::TimedOut };
        self.input(Input::Withdraw { asked: Asked { name: name.clone(), session, request }, why });
        assert!(!self.outside(name).questions.contains_key(&(session, request)) || waiting.is_none(), "I6: withdrawn");
    }

    fn leave(&mut self, name: LockName, session: SessionId) {
        let outside = self.outside(&name);
        outside.holders.remove(&session);
        outside.queue.retain(|(waiting, _)| *waiting != session);
        outside.questions.retain(|(asking, _), _| *asking != session);
        self.input(Input::Leave { name, session });
    }

    /// The operation in flight ends in one of the ways that the file system allows; 0 is the one
    /// without a surprise.
    fn complete(&mut self, name: &LockName, how: u8) {
        let Some((op, file)) = self.outside(name).in_flight.take() else { return };
        let (kept, surprise) = (how & 1 == 0, how >> 1);
        let outcome = self.outcome(name, op, surprise);
        let locked = matches!(outcome, Outcome::Locked | Outcome::Fenced(_) | Outcome::Taken { .. });
        let stays = matches!(
            op,
            FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Give { .. } | FileOp::Take { joins: true, .. }
        );
        let needs_file = stays || locked;
        let tries = matches!(op, FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. });
        let file = match file {
            Some(file) if needs_file || (kept && op != FileOp::Retire) => Some(file),
            None if locked || (kept && tries) => {
                self.next_file += 1;
                self.open.insert(self.next_file);
                Some(self.next_file)
            }
            file => {
                self.open.retain(|open| Some(*open) != file);
                None
            }
        };
        self.shown = match (op, &outcome) {
            (FileOp::Try(mode) | FileOp::Retry(mode), Outcome::Locked)
            | (FileOp::Probe(mode), Outcome::Real)
            | (FileOp::TryFence(mode) | FileOp::ProbeFence(mode), Outcome::Fenced(_)) => Some((name.clone(), mode)),
            (FileOp::Take { of, .. }, Outcome::Taken { .. }) => Some((name.clone(), Mode::Slots(of))),
            _ => None,
        };
        self.completed = Some(name.clone());
        self.input(Input::Done { name: name.clone(), file, outcome });
        (self.shown, self.completed) = (None, None);
    }

    fn outcome(&mut self, name: &LockName, op: FileOp, surprise: u8) -> Outcome {
        let fault = Fault::system(Operation::Lock, name.as_str(), 5);
        let (kind, more) = (surprise % 6, surprise / 6 % 3);
        match op {
            FileOp::Give { first, count, .. } => {
                let slots = &mut self.outside(name).slots;
                (first..first + count).for_each(|slot| assert!(slots.remove(&slot), "{name}: {slot} was not locked"));
            }
            FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Peek | FileOp::Take { joins: true, .. } => {}
            _ => self.outside(name).slots.clear(),
        }
        match (op, kind) {
            (FileOp::Try(_) | FileOp::Retry(_), 0..3) => Outcome::Locked,
            (FileOp::TryFence(_), 0..3) | (FileOp::ProbeFence(_), 0..4) => Outcome::Fenced(Ok(self.take_fence())),
            (FileOp::Take { of, take, fence, .. }, 0..3) => {
                let slots = &mut self.outside(name).slots;
                let taken: Box<[u16]> = (0..of).filter(|slot| !slots.contains(slot)).take(take.into()).collect();
                if taken.len() < take.into() {
                    return Outcome::Refused;
                }
                slots.extend(&taken);
                let fence = fence.then(|| if more == 0 { Ok(self.take_fence()) } else { Err(fault) });
                Outcome::Taken { slots: taken, fence }
            }
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. }, 3) => Outcome::Refused,
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. }, 4) => Outcome::Disturbed,
            (FileOp::Try(Mode::Shared) | FileOp::TryFence(Mode::Shared) | FileOp::Take { .. }, 5) if more == 0 => {
                Outcome::Disagrees(Mode::Slots(1))
            }
            (FileOp::TryFence(_) | FileOp::ProbeFence(_), 5) if more == 1 => Outcome::Fenced(Err(fault)),
            (FileOp::Take { joins: true, .. }, 5) if more == 1 => Outcome::Lost("deleted"),
            (FileOp::Probe(_), 0..4) => Outcome::Real,
            (FileOp::Probe(_) | FileOp::ProbeFence(_), 4) => Outcome::Lost("deleted"),
            (FileOp::Peek, 0..5) => Outcome::Peeked { locked: surprise > 10 },
            (FileOp::Give { .. }, _) => Outcome::Given,
            (FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire, how) => Outcome::Unlocked { file_gone: how > 3 },
            _ => Outcome::Failed(fault),
        }
    }

    fn take_fence(&mut self) -> u64 {
        self.fences += 1;
        self.fences
    }

    /// A fence is granted to at most one session.
    fn fence_granted(&mut self, want: Want, fence: Option<u64>) {
        assert!(fence.is_some() || !want.fence, "{want:?}: no fence");
        if let Some(fence) = fence.filter(|_| want.fence) {
            assert!(self.granted.insert(fence), "the fence {fence} is granted twice");
        }
    }

    /// A timer runs out: one that is armed, or one that is stale.
    fn elapse(&mut self, which: u8, how: u8) {
        let timer = match how {
            0 => Timer::Retry,
            1 => Timer::Linger,
            2 => Timer::Turn(self.name(which)),
            3 => Timer::Recheck,
            _ => match self.timers.iter().nth(usize::from(which) % self.timers.len().max(1)) {
                Some(timer) => timer.clone(),
                None => return,
            },
        };
        self.timers.remove(&timer);
        self.input(Input::Elapsed(timer));
    }

    /// The daemon's next process takes over what this one has at rest, except a session that has
    /// ended in the meantime.
    fn hand_over(&mut self, how: u8) {
        for _ in 0..ROUNDS_MAX {
            let busy: Vec<LockName> = self.engine.in_flight().cloned().collect();
            busy.iter().for_each(|name| self.complete(name, 0));
        }
        assert_eq!(self.engine.in_flight().next(), None, "the engine does not come to rest");
        if self.draining {
            return;
        }
        let dead = SessionId(u64::from(how % 8));
        for outside in self.names.values_mut() {
            outside.holders.remove(&dead);
            outside.queue.retain(|(waiting, _)| *waiting != dead);
            outside.questions.retain(|(asking, _), _| *asking != dead);
        }
        self.timers.clear();
        let handed = self.engine.hand_over();
        self.engine = Engine::new(self.config.clone());
        for handed in handed {
            let mut effects = Vec::new();
            self.engine.take_over(handed, |session| session != dead, &mut effects);
            self.follow(effects);
        }
    }

    fn input(&mut self, input: Input<u32>) {
        let mut effects = Vec::new();
        self.engine.input(input, &mut effects);
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect<u32>>) {
        for effect in effects {
            match effect {
                Effect::File { name, op, file } => {
                    assert!(file.is_none_or(|file| self.open.contains(&file)), "{name}: a closed file is used");
                    let before = self.outside(&name).in_flight.replace((op, file));
                    assert_eq!(before, None, "I4: {name}");
                }
                Effect::Answer { name, session, request, answer } => self.answered(&name, session, request, answer),
                Effect::Lost { name, session, .. } => {
                    // A session that has asked to release it learns of both, or only of the
                    // release.
                    self.outside(&name).holders.remove(&session);
                }
                Effect::Past { .. } => unreachable!("no history is asked for"),
                Effect::Doubt { name, session, .. } => {
                    assert!(
                        self.outside(&name).holders.contains_key(&session),
                        "{name}: {session} holds nothing to doubt"
                    );
                }
                Effect::Arm(timer, after_ms) => {
                    assert!(after_ms > 0, "{timer:?} would run out at once, again and again");
                    self.timers.insert(timer);
                }
                Effect::Contended(name) => {
                    let outside = self.outside(&name);
                    // A request can wait for more slots beside sessions that have some.
                    let slots = |(want, _): &(Want, _)| matches!(want.extent, Extent::Slots { .. });
                    let waits = !outside.queue.is_empty() && outside.holders.values().all(slots);
                    assert!(waits, "{name}: nobody waits for another process");
                }
            }
        }
        self.engine.check_all();
    }

    fn answered(&mut self, name: &LockName, session: SessionId, request: RequestId, answer: Answer) {
        let (shown, completed) = (self.shown.clone(), self.completed.clone());
        let draining = self.draining;
        let outside = self.outside(name);
        let question = outside.questions.remove(&(session, request));
        let question = question.unwrap_or_else(|| panic!("I6: {name}: {answer:?} answers nothing"));
        match (question, answer) {
            (Question::Enter(want, _), Answer::Granted { mode, already: false, slots, fence }) => {
                assert_eq!(
                    (mode, slots.len()),
                    (want.mode(), want.extent.slots().into()),
                    "{name}: granted in another way"
                );
                assert_eq!(shown, Some((name.clone(), mode)), "I3: {name}");
                assert_eq!(outside.queue.first(), Some(&(session, request)), "I5: {name}");
                outside.queue.remove(0);
                outside.holders.insert(session, (want, slots));
                let alone = outside.holders.len() == 1;
                let same = outside.holders.values().all(|(held, _)| held.mode() == mode) && mode != Mode::Exclusive;
                assert!(alone || same, "I1: {name}");
                let held: Vec<u16> = outside.holders.values().flat_map(|(_, slots)| slots.iter().copied()).collect();
                assert_eq!(held.len(), BTreeSet::from_iter(&held).len(), "I1: {name}: a slot is held twice");
                self.fence_granted(want, fence);
            }
            (Question::Enter(_, wait), answer) => {
                outside.queue.retain(|waiting| *waiting != (session, request));
                match answer {
                    Answer::Storage(_) | Answer::Cancelled | Answer::TimedOut => {}
                    Answer::BusyHere(_) | Answer::BusyElsewhere => assert!(!wait, "{name}: a waiter is refused"),
                    Answer::Closing => assert!(draining, "{name}: closing"),
                    Answer::Disagrees { held, asked } => {
                        assert!(held.disagrees_with(asked), "{name}: {held:?} {asked:?}")
                    }
                    answer => panic!("{name}: {answer:?} answers no acquire"),
                }
            }
            (Question::Again(want, held), Answer::Granted { mode, already: true, fence, .. }) => {
                assert!(want.extent == held.extent && mode == held.mode(), "{name}: another mode");
                assert!(!want.fence || fence.is_some(), "{name}: no fence");
                self.granted.extend(fence);
            }
            (Question::Again(want, held), Answer::Mismatch | Answer::Disagrees { .. }) => {
                assert_ne!(want.extent, held.extent, "{name}");
            }
            (Question::Again(..), Answer::Closing) => assert!(draining, "{name}: closing"),
            (Question::Again(..) | Question::Verify, Answer::Lost(_) | Answer::Storage(_) | Answer::NotHeld { .. }) => {
            }
            (Question::Release(HeldBefore::Itself), Answer::Released { .. }) => {
                assert_eq!(completed.as_ref(), Some(name), "I9: {name}");
            }
            // The unlock does not come back: no answer may say that it is done.
            (Question::Release(HeldBefore::Itself), Answer::Storage(_)) => {}
            (Question::Release(HeldBefore::WithOthers), Answer::Released { .. })
            | (Question::Release(HeldBefore::Not), Answer::NotHeld { .. })
            | (Question::Verify, Answer::Real | Answer::RealWith { .. })
            | (Question::Peek, Answer::Peeked(_) | Answer::Storage(_)) => {}
            (question, answer) => panic!("{name}: {answer:?} answers no {question:?}"),
        }
    }

    /// Nothing goes wrong any more, and time passes, until the engine has come to rest.
    fn calm_down(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let busy: Vec<LockName> =
                self.names.iter().filter(|(_, it)| it.in_flight.is_some()).map(|(name, _)| name.clone()).collect();
            let timers = std::mem::take(&mut self.timers);
            if busy.is_empty() && timers.is_empty() {
                return;
            }
            busy.iter().for_each(|name| self.complete(name, 0));
            timers.into_iter().for_each(|timer| self.input(Input::Elapsed(timer)));
        }
        panic!("the engine does not come to rest: {:?}", self.engine);
    }

    /// Every holder releases its lock, until there is none: then every request was answered, and
    /// nothing is left.
    fn end(mut self) {
        self.calm_down();
        self.check_waits();
        while let Some((name, session)) = self.holder() {
            self.release(name, session);
            self.calm_down();
            self.check_waits();
        }
        for (name, outside) in &self.names {
            assert!(outside.questions.is_empty(), "I6: {name}: {:?} without an answer", outside.questions);
        }
        assert_eq!(self.open, BTreeSet::new(), "files stay open");
        assert_eq!(self.engine.count(None, usize::MAX), ((0, 0), None));
    }

    fn holder(&self) -> Option<(LockName, SessionId)> {
        let first = |(name, outside): (&LockName, &Outside)| Some((name.clone(), *outside.holders.keys().next()?));
        self.names.iter().find_map(first)
    }

    /// Everything is at rest: a request without an answer queues behind a holder with which it
    /// cannot share (I7).
    fn check_waits(&self) {
        for (name, outside) in &self.names {
            let waits = |question: &Question| matches!(question, Question::Enter(_, true));
            assert!(outside.questions.values().all(waits), "I6: {name}: {:?}", outside.questions);
            if let Some(head) = outside.queue.first() {
                let wants = outside.questions[head];
                let Question::Enter(wants, _) = wants else { panic!("{name}: {wants:?} in the queue") };
                let same = outside.holders.values().all(|(held, _)| held.mode() == wants.mode());
                let slots: usize = outside.holders.values().map(|(_, slots)| slots.len()).sum();
                let shares = match wants.extent {
                    Extent::Exclusive => false,
                    Extent::Shared => same,
                    Extent::Slots { of, take } => same && slots + usize::from(take) <= of.into(),
                };
                assert!(!outside.holders.is_empty() && !shares, "I7: {name}: {head:?} waits for nothing");
            }
        }
    }
}
