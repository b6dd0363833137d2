//! Scenarios of the engine, and random runs of it ([`run`]). Here the file operations are completed
//! by hand; in `model` they go through the production code.

use proptest::prelude::*;

use std::collections::VecDeque;

use distrilock_protocol::name::LockName;

use crate::deadlock::{Holder, Queue, Waiting};
use crate::fault::{Cause, Fault, Operation};
use crate::limits::{DISTURBED_MAX, RETRY_MS_MAX, RETRY_MS_MIN, TURN_MS, YIELD_MS};
use crate::*;
use Mode::{Exclusive, Shared};

mod contention;
mod crowd;
mod run;
mod slots;

type Effects = Vec<Effect<u32>>;

/// The open file of every scenario; the engine does not care which one it is.
const FILE: u32 = 7;

fn name(text: &str) -> LockName {
    LockName::parse(text.as_bytes()).unwrap()
}

/// Sessions that use the name `n`. Each gives its requests its own number.
struct Scenario {
    engine: Engine<u32>,
}

impl Scenario {
    fn new() -> Self {
        Self::with(Config {
            linger_ms: 2000,
            linger_files_max: 2,
            linger_evicts: true,
            pace: Pace::LOCAL,
            history_from_ms: u64::MAX,
        })
    }

    fn without_linger() -> Self {
        Self::with(Config {
            linger_ms: 0,
            linger_files_max: 2,
            linger_evicts: false,
            pace: Pace::LOCAL,
            history_from_ms: u64::MAX,
        })
    }

    fn with(config: Config) -> Self {
        Self { engine: Engine::new(config) }
    }

    fn input(&mut self, input: Input<u32>) -> Effects {
        let mut effects = Vec::new();
        self.engine.input(input, &mut effects);
        self.engine.check_all();
        effects
    }

    fn wait(&mut self, session: u64, mode: Mode) -> Effects {
        self.input(Input::Acquire { asked: asked(session), want: mode.into(), wait: true })
    }

    fn try_it(&mut self, session: u64, mode: Mode) -> Effects {
        self.input(Input::Acquire { asked: asked(session), want: mode.into(), wait: false })
    }

    fn release(&mut self, session: u64) -> Effects {
        self.input(Input::Release(asked(session)))
    }

    fn leave(&mut self, session: u64) -> Effects {
        self.input(Input::Leave { name: name("n"), session: SessionId(session) })
    }

    fn withdraw(&mut self, session: u64, why: Withdrawal) -> Effects {
        self.input(Input::Withdraw { asked: asked(session), why })
    }

    /// The operation in flight is complete, and the file is still open.
    fn done(&mut self, outcome: Outcome) -> Effects {
        self.input(Input::Done { name: name("n"), file: Some(FILE), outcome })
    }

    /// The operation in flight is complete, and no file is open.
    fn closed(&mut self, outcome: Outcome) -> Effects {
        self.input(Input::Done { name: name("n"), file: None, outcome })
    }

    fn elapsed(&mut self, timer: Timer) -> Effects {
        self.input(Input::Elapsed(timer))
    }

    /// A session acquires the name, which nobody held.
    fn held(&mut self, session: u64, mode: Mode) {
        self.wait(session, mode);
        assert_eq!(self.done(Outcome::Locked), [granted(session, mode)]);
    }

    /// A session joins others.
    fn joined(&mut self, session: u64) {
        assert_eq!(self.wait(session, Shared), [probe(Shared)]);
        assert_eq!(self.done(Outcome::Real), [granted(session, Shared)]);
    }

    /// A stale timer changes nothing at all.
    fn unmoved_by(&mut self, timer: &Timer) {
        let before = self.engine.clone();
        assert_eq!(self.elapsed(timer.clone()), []);
        assert_eq!(self.engine, before, "{timer:?}");
    }
}

fn asked(session: u64) -> Asked {
    Asked { name: name("n"), session: SessionId(session), request: RequestId(session) }
}

fn says(session: u64, answer: Answer) -> Effect<u32> {
    let Asked { name, session, request } = asked(session);
    Effect::Answer { name, session, request, answer }
}

fn granted(session: u64, mode: Mode) -> Effect<u32> {
    says(session, grant(mode, false))
}

fn grant(mode: Mode, already: bool) -> Answer {
    Answer::Granted { mode, already, slots: Box::default(), fence: None }
}

fn released(session: u64) -> Effect<u32> {
    says(session, Answer::Released { file_gone: false })
}

fn busy_here(session: u64, holder: u64, mode: Mode) -> Effect<u32> {
    let holder = Claim::new(SessionId(holder), mode.into(), 0);
    says(session, Answer::BusyHere(Some(holder)))
}

fn file(op: FileOp) -> Effect<u32> {
    Effect::File { name: name("n"), op, file: Some(FILE) }
}

fn probe(mode: Mode) -> Effect<u32> {
    file(FileOp::Probe(mode))
}

fn first_try(mode: Mode) -> Effect<u32> {
    Effect::File { name: name("n"), op: FileOp::Try(mode), file: None }
}

fn lost(session: u64, reason: &'static str) -> Effect<u32> {
    Effect::Lost { name: name("n"), session: SessionId(session), reason }
}

fn turn() -> Timer {
    Timer::Turn(name("n"))
}

const UNLOCKED: Outcome = Outcome::Unlocked { file_gone: false };

fn fault() -> Fault {
    const EIO: i32 = 5;
    Fault::system(Operation::Open, "/d/n.lck", EIO)
}

fn stalled() -> Fault {
    Fault { cause: Cause::StalledDeletion, path: "n".into() }
}

/// Three sessions want the name exclusively: they get it in the order in which they asked, each
/// when the previous one releases.
#[test]
fn first_come_first_served() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    assert_eq!(n.wait(2, Exclusive), []);
    assert_eq!(n.wait(3, Exclusive), []);
    assert_eq!(n.release(1), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [released(1), granted(2, Exclusive)]);
    assert_eq!(n.release(2), [file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [released(2), granted(3, Exclusive)]);
}

/// A writer waits for a reader, and more readers come: they queue behind the writer, which
/// therefore gets its turn.
#[test]
fn readers_do_not_starve_a_writer() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    assert_eq!(n.wait(2, Exclusive), []);
    assert_eq!(n.wait(3, Shared), []);
    assert_eq!(n.try_it(4, Shared), [busy_here(4, 1, Shared)]);
    n.release(1);
    assert_eq!(n.done(Outcome::Locked), [released(1), granted(2, Exclusive)]);
}

/// Two readers stand side by side in the queue, with a writer behind them: the readers enter
/// together, the writer does not.
#[test]
fn neighbouring_readers_enter_together() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Shared);
    n.wait(3, Shared);
    n.wait(4, Exclusive);
    n.wait(5, Shared);
    n.release(1);
    assert_eq!(n.done(Outcome::Locked), [released(1), granted(2, Shared), granted(3, Shared)]);
}

/// A reader joins another only once a probe has shown that the lock they will share is real (I3).
#[test]
fn a_probe_comes_before_a_join() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    assert_eq!(n.try_it(2, Shared), [probe(Shared)]);
    assert_eq!(n.done(Outcome::Real), [granted(2, Shared)]);
}

/// The probe before a join finds the lock gone: the holders are told, and the joining session gets
/// a lock that is real.
#[test]
fn a_join_finds_a_lost_lock() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.joined(2);
    assert_eq!(n.wait(3, Shared), [probe(Shared)]);
    let effects = n.done(Outcome::Lost("gone"));
    let try_again = file(FileOp::Try(Shared));
    assert_eq!(effects, [lost(1, "gone"), lost(2, "gone"), Effect::Arm(turn(), TURN_MS), try_again]);
    assert_eq!(n.done(Outcome::Locked), [granted(3, Shared)]);
}

/// The probe before a join fails: the readers in front are refused as `storage`, and the holder
/// keeps the lock.
#[test]
fn a_join_meets_a_fault() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.wait(2, Shared);
    n.wait(3, Shared);
    n.wait(4, Exclusive);
    let refused = |session| says(session, Answer::Storage(fault()));
    assert_eq!(n.done(Outcome::Failed(fault())), [refused(2), refused(3)]);
    assert_eq!(n.release(1), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Exclusive))]);
}

/// A request that does not wait comes while others wait: it is refused at once, whether or not it
/// could share with the holder.
#[test]
fn a_try_behind_waiters_is_refused() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    assert_eq!(n.try_it(3, Exclusive), [busy_here(3, 1, Exclusive)]);
    assert_eq!(n.try_it(4, Shared), [busy_here(4, 1, Exclusive)]);
}

/// A session acquires what it holds: in the same mode it is told so after a probe, in the other
/// mode it is refused.
#[test]
fn acquiring_what_is_held() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    assert_eq!(n.wait(1, Exclusive), [probe(Exclusive)]);
    assert_eq!(n.done(Outcome::Real), [says(1, grant(Exclusive, true))]);
    assert_eq!(n.wait(1, Shared), [says(1, Answer::Mismatch)]);
    n.wait(1, Exclusive);
    assert_eq!(n.done(Outcome::Failed(fault())), [says(1, Answer::Storage(fault()))]);
}

/// A waiting request is withdrawn: it is answered once, with the reason, and the next one takes its
/// place.
#[test]
fn a_wait_is_withdrawn() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.wait(2, Exclusive);
    n.wait(3, Shared);
    assert_eq!(n.withdraw(2, Withdrawal::TimedOut), [says(2, Answer::TimedOut), probe(Shared)]);
    assert_eq!(n.withdraw(2, Withdrawal::Cancelled), []);
    assert_eq!(n.withdraw(3, Withdrawal::Cancelled), [says(3, Answer::Cancelled)]);
    assert_eq!(n.done(Outcome::Real), []);
    assert_eq!(n.withdraw(1, Withdrawal::Cancelled), [], "a granted request waits no more");
}

/// The queues of names that requests wait for are read in pieces, none of which divides a queue.
#[test]
fn queues_are_read_in_pieces() {
    let mut n = Scenario::new();
    let acquire = |lock: &str, session, mode: Mode, wait| {
        let asked = Asked { name: name(lock), session: SessionId(session), request: RequestId(session) };
        Input::Acquire { asked, want: mode.into(), wait }
    };
    for lock in ["held", "tried", "wanted"] {
        n.input(acquire(lock, 1, Exclusive, true));
        n.input(Input::Done { name: name(lock), file: Some(FILE), outcome: Outcome::Locked });
    }
    n.input(acquire("tried", 2, Exclusive, false));
    n.input(acquire("wanted", 2, Shared, true));
    n.input(acquire("wanted", 3, Mode::Slots(2), true));
    n.input(acquire("wished", 3, Exclusive, true));
    let holder = Holder { session: SessionId(1), mode: Exclusive, slots: 0, since_ms: 0 };
    let waiting = |session, mode, take| {
        let (session, request) = (SessionId(session), RequestId(session));
        Waiting { session, request, mode, take, since_ms: 0 }
    };
    let wanted = Queue {
        name: name("wanted"),
        holders: vec![holder],
        waiters: vec![waiting(2, Shared, 0), waiting(3, Mode::Slots(2), 1)],
    };
    let wished = Queue { name: name("wished"), holders: Vec::new(), waiters: vec![waiting(3, Exclusive, 0)] };
    assert_eq!(n.engine.queues(None, 100), (vec![wanted.clone(), wished.clone()], None));
    assert_eq!(n.engine.queues(None, 2), (Vec::new(), Some(name("tried"))));
    assert_eq!(n.engine.queues(Some(&name("tried")), 2), (vec![wanted], Some(name("wanted"))));
    assert_eq!(n.engine.queues(Some(&name("wanted")), 100), (vec![wished], None));
}

/// A request is withdrawn while its try is under way: the lock goes to the next request, or is
/// released.
#[test]
fn the_wait_ends_during_its_try() {
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    assert_eq!(n.withdraw(1, Withdrawal::Cancelled), [says(1, Answer::Cancelled)]);
    assert_eq!(n.wait(2, Shared), []);
    assert_eq!(n.done(Outcome::Locked), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Shared))]);
    n.withdraw(2, Withdrawal::Cancelled);
    assert_eq!(n.done(Outcome::Locked), [file(FileOp::Unlock)]);
}

/// The session that holds the name ends, and so does one that waits for it: neither is answered,
/// and the next one gets the name.
#[test]
fn sessions_leave_with_everything() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    n.wait(3, Exclusive);
    assert_eq!(n.leave(2), []);
    assert_eq!(n.leave(1), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [granted(3, Exclusive)]);
}

/// A session ends while its release, verify or peek is under way: the operation completes and
/// answers nobody.
#[test]
fn sessions_leave_with_their_questions() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    assert_eq!(n.input(Input::Verify(asked(1))), [probe(Exclusive)]);
    assert_eq!(n.leave(1), []);
    assert_eq!(n.done(Outcome::Real), [file(FileOp::Unlock)]);
    assert_eq!(n.input(Input::Peek(asked(2))), []);
    assert_eq!(n.leave(2), []);
    assert_eq!(n.done(UNLOCKED), [Effect::Arm(Timer::Linger, 2000)]);
    n.held(3, Exclusive);
    n.release(3);
    n.leave(3);
    assert_eq!(n.done(UNLOCKED), []);
}

/// The last holder releases, and nobody waits: the release is answered only when the file is
/// unlocked (I9).
#[test]
fn a_release_is_answered_after_the_unlock() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    assert_eq!(n.release(1), [file(FileOp::Unlock)]);
    let gone = Outcome::Unlocked { file_gone: true };
    let answer = says(1, Answer::Released { file_gone: true });
    assert_eq!(n.done(gone), [answer, Effect::Arm(Timer::Linger, 2000)]);
    assert_eq!(n.release(1), [says(1, Answer::NotHeld { by_another: false })]);
}

/// One of two readers releases: the other keeps the lock, and the file needs no operation.
#[test]
fn one_of_two_readers_releases() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.joined(2);
    assert_eq!(n.release(1), [released(1)]);
    assert_eq!(n.release(1), [says(1, Answer::NotHeld { by_another: true })]);
    assert_eq!(n.release(2), [file(FileOp::Unlock)]);
}

/// A lock should pass from readers to a writer, but a reader of another daemon is in the way: the
/// release is answered, and the writer is tried again when the retry timer runs out.
#[test]
fn a_hand_on_is_refused() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.wait(2, Exclusive);
    n.release(1);
    let effects = n.done(Outcome::Refused);
    assert_eq!(effects.len(), 3, "{effects:?}");
    assert_eq!(effects[0], released(1));
    assert!(matches!(effects[1], Effect::Arm(Timer::Retry, RETRY_MS_MIN..=RETRY_MS_MAX)));
    assert_eq!(effects[2], Effect::Contended(name("n")));
    assert_eq!(n.elapsed(Timer::Retry), [file(FileOp::Retry(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [granted(2, Exclusive)]);
}

/// Another process holds the name: a request that does not wait is refused, one that waits keeps
/// waiting, and a second one that does not wait gets a try of its own, since the last refusal is
/// older than it.
#[test]
fn another_process_holds_the_name() {
    let mut n = Scenario::new();
    assert_eq!(n.try_it(1, Exclusive), [first_try(Exclusive)]);
    assert_eq!(n.done(Outcome::Refused)[0], says(1, Answer::BusyElsewhere));
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    assert!(matches!(n.done(Outcome::Refused)[..], [Effect::Arm(Timer::Retry, _), Effect::Contended(_)]));
    assert_eq!(n.try_it(2, Exclusive), [file(FileOp::Try(Exclusive))]);
    assert_eq!(n.try_it(3, Exclusive), []);
    assert_eq!(n.done(Outcome::Refused), [says(2, Answer::BusyElsewhere), file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Refused), [says(3, Answer::BusyElsewhere)]);
}

/// A try fails: the requests that were there when it began are refused as `storage`, and those that
/// came since get their own try.
#[test]
fn a_try_fails() {
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    n.wait(2, Exclusive);
    assert_eq!(n.closed(Outcome::Failed(fault())), [says(1, Answer::Storage(fault())), first_try(Exclusive)]);
    assert_eq!(n.closed(Outcome::Failed(fault())), [says(2, Answer::Storage(fault()))]);
    assert_eq!(n.engine, Scenario::new().engine);
}

/// Nobody holds the name, but a process that is deleting its file is in the way, and stays there:
/// after some tries, a request that does not wait is refused as `storage`, never as held; one that
/// waits keeps waiting.
#[test]
fn a_deletion_that_does_not_end() {
    let mut n = Scenario::new();
    n.try_it(1, Exclusive);
    n.wait(2, Exclusive);
    for _ in 0..DISTURBED_MAX {
        assert!(matches!(n.done(Outcome::Disturbed)[..], [Effect::Arm(Timer::Retry, _)]));
        assert_eq!(n.elapsed(Timer::Retry), [file(FileOp::Try(Exclusive))]);
    }
    let effects = n.done(Outcome::Disturbed);
    assert_eq!(effects[0], says(1, Answer::Storage(stalled())));
    assert!(matches!(effects[1..], [Effect::Arm(Timer::Retry, _)]));
    n.elapsed(Timer::Retry);
    assert_eq!(n.done(Outcome::Locked), [granted(2, Exclusive)]);
}

/// A process was deleting the file and has finished: a request that does not wait is granted the
/// name after all.
#[test]
fn a_deletion_that_ends() {
    let mut n = Scenario::new();
    n.try_it(1, Exclusive);
    assert!(matches!(n.done(Outcome::Disturbed)[..], [Effect::Arm(Timer::Retry, _)]));
    n.elapsed(Timer::Retry);
    assert_eq!(n.done(Outcome::Locked), [granted(1, Exclusive)]);
}

/// A request has met a deletion and will be tried again, and somebody peeks in the meantime: the
/// peek does not count as a try.
#[test]
fn a_peek_during_a_deletion() {
    let mut n = Scenario::new();
    n.try_it(1, Exclusive);
    n.done(Outcome::Disturbed);
    assert_eq!(n.input(Input::Peek(asked(2))), [file(FileOp::Peek)]);
    assert_eq!(n.done(Outcome::Peeked { locked: false }).len(), 1);
    n.elapsed(Timer::Retry);
    assert_eq!(n.done(Outcome::Disturbed)[0], says(1, Answer::Storage(stalled())));
}

/// A holder verifies its lock: it is real; the storage fails; it is not real, and then it is no
/// longer held.
#[test]
fn verify_finds_a_lost_lock() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.input(Input::Verify(asked(1)));
    assert_eq!(n.done(Outcome::Real), [says(1, Answer::Real)]);
    n.input(Input::Verify(asked(1)));
    assert_eq!(n.done(Outcome::Failed(fault())), [says(1, Answer::Storage(fault()))]);
    n.input(Input::Verify(asked(1)));
    let effects = n.done(Outcome::Lost("gone"));
    assert_eq!(effects, [says(1, Answer::Lost("gone")), lost(1, "gone"), file(FileOp::Unlock)]);
    assert_eq!(n.input(Input::Verify(asked(1))), [says(1, Answer::NotHeld { by_another: false })]);
    assert_eq!(n.done(UNLOCKED), [Effect::Arm(Timer::Linger, 2000)]);
}

/// A holder reads the stamp of its name and writes it, one operation after the other and apart from
/// probes; each shows that the lock is real. A stamp that fails changes nothing else.
#[test]
fn a_holder_has_the_stamp() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    let stamp = |n: &mut Scenario, request, age_ms| {
        let asked = Asked { request: RequestId(request), ..asked(1) };
        n.input(Input::Stamp { asked, age_ms })
    };
    let says = |request, answer| {
        let Asked { name, session, .. } = asked(1);
        Effect::Answer { name, session, request: RequestId(request), answer }
    };
    assert_eq!(stamp(&mut n, 1, None), [file(FileOp::Stamp(Exclusive, None))]);
    assert_eq!(stamp(&mut n, 2, Some(5)), []);
    assert_eq!(n.input(Input::Verify(Asked { request: RequestId(3), ..asked(1) })), []);
    assert_eq!(n.done(Outcome::Stamped(Ok(Some(70)))), [says(1, Answer::Stamped(Some(70))), probe(Exclusive)]);
    assert_eq!(n.done(Outcome::Real), [says(3, Answer::Real), file(FileOp::Stamp(Exclusive, Some(5)))]);
    assert_eq!(n.done(Outcome::Stamped(Ok(Some(5)))), [says(2, Answer::Stamped(Some(5)))]);
    stamp(&mut n, 4, Some(0));
    assert_eq!(n.done(Outcome::Stamped(Err(fault()))), [says(4, Answer::Storage(fault()))]);
    stamp(&mut n, 5, None);
    let effects = n.done(Outcome::Lost("gone"));
    assert_eq!(effects, [says(5, Answer::Lost("gone")), lost(1, "gone"), file(FileOp::Unlock)]);
}

/// Questions about stamps and others take turns: neither kind waits for long, however many of the
/// other kind come.
#[test]
fn stamps_and_probes_take_turns() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    n.input(Input::Verify(asked(1)));
    for request in 10..20 {
        let asked = Asked { request: RequestId(request), ..asked(1) };
        assert_eq!(n.input(Input::Stamp { asked, age_ms: None }), []);
    }
    n.input(Input::Verify(asked(1)));
    assert_eq!(n.done(Outcome::Real).last(), Some(&probe(Shared)));
    for _ in 10..20 {
        // A question of the other kind is always there.
        n.input(Input::Verify(asked(1)));
        assert_eq!(n.done(Outcome::Real).last(), Some(&file(FileOp::Stamp(Shared, None))));
        assert_eq!(n.done(Outcome::Stamped(Ok(None))).last(), Some(&probe(Shared)));
    }
}

/// A session that does not hold the name has nothing to do with its stamp, nor has one that
/// releases it meanwhile.
#[test]
fn no_stamp_without_the_lock() {
    let mut n = Scenario::new();
    let stamp = |session| Input::Stamp { asked: asked(session), age_ms: Some(0) };
    assert_eq!(n.input(stamp(1)), [says(1, Answer::NotHeld { by_another: false })]);
    n.held(1, Exclusive);
    assert_eq!(n.input(stamp(2)), [says(2, Answer::NotHeld { by_another: true })]);
    assert_eq!(n.input(stamp(1)), [file(FileOp::Stamp(Exclusive, Some(0)))]);
    assert_eq!(n.release(1), [says(1, Answer::NotHeld { by_another: false })]);
    assert_eq!(n.done(Outcome::Stamped(Ok(Some(0)))), [file(FileOp::Unlock)]);
    assert!(n.done(UNLOCKED).contains(&released(1)));
}

/// A session that holds nothing verifies its lock: it is told that it has none, and whether another
/// session does.
#[test]
fn verify_without_a_lock() {
    let mut n = Scenario::new();
    assert_eq!(n.input(Input::Verify(asked(1))), [says(1, Answer::NotHeld { by_another: false })]);
    n.held(1, Exclusive);
    assert_eq!(n.input(Input::Verify(asked(2))), [says(2, Answer::NotHeld { by_another: true })]);
}

/// A peek at a name that is held here needs no file; otherwise the file system says whether another
/// process locks it.
#[test]
fn peeks() {
    let mut n = Scenario::new();
    let peek = [Effect::File { name: name("n"), op: FileOp::Peek, file: None }];
    let view = |holders: &[Claim], waiters: &[Claim], contender| {
        let (holders_total, waiters_total) = (holders.len(), waiters.len());
        View { holders: holders.into(), holders_total, waiters: waiters.into(), waiters_total, contender }
    };
    for locked in [true, false] {
        assert_eq!(n.input(Input::Peek(asked(9))), peek);
        let answer = Answer::Peeked(view(&[], &[], locked));
        assert_eq!(n.closed(Outcome::Peeked { locked }), [says(9, answer)]);
    }
    n.input(Input::Peek(asked(9)));
    assert_eq!(n.closed(Outcome::Failed(fault())), [says(9, Answer::Storage(fault()))]);
    assert_eq!(n.engine, Scenario::new().engine, "a peek leaves no record behind (I10)");
    n.input(Input::Now(50));
    n.held(1, Shared);
    n.input(Input::Now(60));
    n.wait(2, Exclusive);
    let seen = |session, mode: Mode, since_ms| Claim::new(SessionId(session), mode.into(), since_ms);
    let answer = Answer::Peeked(view(&[seen(1, Shared, 50)], &[seen(2, Exclusive, 60)], false));
    assert_eq!(n.input(Input::Peek(asked(9))), [says(9, answer)]);
    assert_eq!(n.engine.count(None, 9), ((1, 1), None));
    assert_eq!(n.engine.names(None).map(LockName::as_str).collect::<Vec<_>>(), ["n"]);
    assert_eq!(n.engine.names(Some(&name("n"))).count(), 0);
}

/// What took a second is in the history: a grant after a wait, with its end however short, a long
/// hold, and a wait that ends without a grant. What is short leaves nothing, except a loss.
#[test]
fn what_the_history_has() {
    let config = Config { history_from_ms: 1000, ..Scenario::new().engine.config };
    let mut n = Scenario::with(config);
    let past = |session, mode, past| Effect::Past { name: name("n"), session: SessionId(session), mode, past };
    let is_past = |effect: &Effect<u32>| matches!(effect, Effect::Past { .. });
    n.input(Input::Now(50));
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    n.wait(3, Exclusive);
    n.input(Input::Now(1049));
    assert!(!n.release(1).iter().any(is_past), "held for 999 ms");
    n.input(Input::Now(1050));
    let entered = n.done(Outcome::Locked);
    assert!(entered.contains(&past(2, Exclusive, Past::Granted { waited_ms: 1000 })), "{entered:?}");
    let end = HoldEnd::Released;
    assert!(n.release(2).contains(&past(2, Exclusive, Past::Ended { held_ms: 0, waited_ms: 1000, end })));
    n.done(Outcome::Locked);
    n.wait(4, Exclusive);
    n.wait(5, Exclusive);
    n.input(Input::Now(2100));
    let withdrawn = n.input(Input::Withdraw { asked: asked(4), why: Withdrawal::TimedOut });
    assert!(withdrawn.contains(&past(4, Exclusive, Past::GaveUp { waited_ms: 1050, why: WaitEnd::TimedOut })));
    assert!(n.leave(5).contains(&past(5, Exclusive, Past::GaveUp { waited_ms: 1050, why: WaitEnd::SessionEnded })));
    let left = n.leave(3);
    let end = HoldEnd::SessionEnded;
    assert!(left.contains(&past(3, Exclusive, Past::Ended { held_ms: 1050, waited_ms: 1000, end })), "{left:?}");
    let mut n = Scenario::with(Config { history_from_ms: 1000, ..Scenario::new().engine.config });
    n.held(1, Exclusive);
    let end = HoldEnd::Lost("silent");
    assert!(n.input(Input::Silence("silent")).contains(&past(
        1,
        Exclusive,
        Past::Ended { held_ms: 0, waited_ms: 0, end }
    )));
}

/// Released files are kept: the one that has been idle longest goes when there are too many, when
/// descriptors are short, and when the linger is over; one that is in use again does not.
#[test]
fn released_files_linger() {
    let mut s = Scenario::new();
    let asked = |text| Asked { name: name(text), session: SessionId(1), request: RequestId(1) };
    let done = |text, outcome| Input::Done { name: name(text), file: Some(FILE), outcome };
    let retire = |text| Effect::File { name: name(text), op: FileOp::Retire, file: Some(FILE) };
    let mut used = |text: &'static str| {
        s.input(Input::Acquire { asked: asked(text), want: Exclusive.into(), wait: true });
        s.input(done(text, Outcome::Locked));
        s.input(Input::Release(asked(text)));
        let effects = s.input(done(text, UNLOCKED));
        effects[1..].to_vec()
    };
    assert_eq!(used("a"), [Effect::Arm(Timer::Linger, 2000)]);
    assert_eq!(used("b"), []);
    assert_eq!(used("c"), [retire("a")], "at the bound");
    s.input(Input::Done { name: name("a"), file: None, outcome: UNLOCKED });
    assert_eq!(s.input(Input::Shed), [retire("b")]);
    s.input(Input::Done { name: name("b"), file: None, outcome: UNLOCKED });
    assert_eq!(s.elapsed(Timer::Linger), [Effect::Arm(Timer::Linger, 2000)], "c is younger than the linger");
    assert_eq!(s.elapsed(Timer::Linger), [retire("c")]);
    s.input(Input::Done { name: name("c"), file: None, outcome: UNLOCKED });
    assert_eq!(s.input(Input::Shed), []);
    assert_eq!(s.engine, Scenario::new().engine, "nothing stays behind");
}

/// Where files are cheap to open, one more than are kept goes at once, and those that are kept
/// stay.
#[test]
fn no_file_lingers_beyond_the_bound() {
    let mut s = Scenario::with(Config { linger_evicts: false, ..Scenario::new().engine.config });
    let asked = |text| Asked { name: name(text), session: SessionId(1), request: RequestId(1) };
    let done = |text, outcome| Input::Done { name: name(text), file: Some(FILE), outcome };
    let mut released_by = |text: &'static str| {
        s.input(Input::Acquire { asked: asked(text), want: Exclusive.into(), wait: true });
        s.input(done(text, Outcome::Locked));
        let effects = s.input(Input::Release(asked(text)));
        let [Effect::File { op, .. }] = effects[..] else { panic!("{effects:?}") };
        let file = (op == FileOp::Unlock).then_some(FILE);
        s.input(Input::Done { name: name(text), file, outcome: UNLOCKED });
        op
    };
    assert_eq!(released_by("a"), FileOp::Unlock);
    assert_eq!(released_by("b"), FileOp::Unlock);
    assert_eq!(released_by("c"), FileOp::Retire, "at the bound");
    assert_eq!(released_by("a"), FileOp::Unlock, "it has a place");
    assert_eq!(s.engine.count(None, 99), ((0, 0), None));
}

/// The linger ends while the file is in use again: the file stays.
#[test]
fn a_lingering_file_is_used_again() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.release(1);
    n.done(UNLOCKED);
    assert_eq!(n.wait(1, Exclusive), [file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [granted(1, Exclusive)]);
    assert_eq!(n.elapsed(Timer::Linger), []);
    assert_eq!(n.input(Input::Shed), []);
}

/// Without a linger, a released file goes at once, as does one that a refused try left open.
#[test]
fn no_linger() {
    let mut n = Scenario::without_linger();
    n.held(1, Exclusive);
    assert_eq!(n.release(1), [file(FileOp::Retire)]);
    assert_eq!(n.closed(UNLOCKED), [released(1)]);
    n.try_it(1, Exclusive);
    assert_eq!(n.done(Outcome::Refused), [says(1, Answer::BusyElsewhere), file(FileOp::Retire)]);
    n.closed(UNLOCKED);
    assert_eq!(n.engine, Scenario::without_linger().engine);
}

/// The daemon stops: waiting and new requests are refused, holders keep their locks until they
/// release, and every file goes.
#[test]
fn the_daemon_drains() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    assert_eq!(n.input(Input::Drain), [says(2, Answer::Closing)]);
    assert_eq!(n.wait(3, Exclusive), [says(3, Answer::Closing)]);
    assert_eq!(n.release(1), [file(FileOp::Retire)]);
    assert_eq!(n.closed(UNLOCKED), [released(1)]);
    assert_eq!(n.engine.count(None, 9), ((0, 0), None));
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.release(1);
    n.done(UNLOCKED);
    assert_eq!(n.input(Input::Drain), [file(FileOp::Retire)], "an idle file goes at once");
}

/// The daemon stops while a try is under way: the lock is released.
#[test]
fn the_daemon_drains_during_a_try() {
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    assert_eq!(n.input(Input::Drain), [says(1, Answer::Closing)]);
    assert_eq!(n.done(Outcome::Locked), [file(FileOp::Retire)]);
}

/// The daemon has passed a name on among its own sessions for long enough: at the next release it
/// unlocks the file although somebody waits, leaves it alone for a while, and then tries like any
/// other daemon.
#[test]
fn the_turn_ends() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    n.wait(3, Exclusive);
    assert_eq!(n.release(1)[0], Effect::Arm(turn(), TURN_MS));
    n.done(Outcome::Locked);
    assert_eq!(n.elapsed(turn()), [], "the holder is left in peace");
    assert_eq!(n.release(2), [file(FileOp::Unlock)]);
    assert_eq!(n.done(UNLOCKED), [released(2), Effect::Arm(turn(), YIELD_MS)]);
    assert_eq!(n.try_it(4, Exclusive), [says(4, Answer::BusyHere(None))], "others wait");
    assert_eq!(n.elapsed(turn()), [file(FileOp::Retry(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [granted(3, Exclusive)]);
    assert_eq!(n.release(3), [file(FileOp::Unlock)]);
}

/// The file was unlocked during the turn, since nobody waited: others had their chance, and the end
/// of the turn means nothing.
#[test]
fn the_turn_is_broken() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    n.release(1);
    n.done(Outcome::Locked);
    n.release(2);
    n.done(UNLOCKED);
    n.held(3, Exclusive);
    n.wait(4, Exclusive);
    assert_eq!(n.elapsed(turn()), []);
    assert_eq!(n.release(3), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Exclusive))], "a turn of its own");
}

/// Timers that are not needed any more run out: nothing happens.
#[test]
fn stale_timers_are_no_ops() {
    let mut n = Scenario::new();
    for timer in [Timer::Retry, Timer::Recheck, Timer::Linger, turn()] {
        n.unmoved_by(&timer);
    }
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    for timer in [Timer::Retry, Timer::Recheck, Timer::Linger, turn()] {
        n.unmoved_by(&timer);
    }
}

/// A name whose operation does not come back stays behind: the operation may still complete while
/// the rest is on its way to the next process.
#[test]
fn completed_after_the_hand_over() {
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    assert_eq!(n.engine.hand_over(), []);
    n.leave(1);
    assert_eq!(n.done(Outcome::Locked), [file(FileOp::Unlock)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    /// Several sessions do anything they may with several names, while file operations complete in
    /// any order with any outcome and timers run out at any time.
    #[test]
    fn random_runs(linger: [bool; 2], steps in prop::collection::vec(any::<[u8; 3]>(), 0..200)) {
        run::run(linger, steps);
    }
}
