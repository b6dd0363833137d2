//! Scenarios with slots and fences.

use super::*;

const FOUR: Mode = Mode::Slots(4);

fn take(take: u16, joins: bool) -> FileOp {
    FileOp::Take { of: 4, take, joins, fence: false }
}

fn some(take: u16) -> Want {
    Want { extent: Extent::Slots { of: 4, take }, fence: false }
}

fn fenced(want: Want) -> Want {
    Want { fence: true, ..want }
}

fn taken(slots: &[u16]) -> Outcome {
    Outcome::Taken { slots: slots.into(), fence: None }
}

fn has(session: u64, slots: &[u16], fence: Option<u64>) -> Effect<u32> {
    says(session, Answer::Granted { mode: FOUR, already: false, slots: slots.into(), fence })
}

fn disagrees(session: u64, held: Mode, asked: Mode) -> Effect<u32> {
    says(session, Answer::Disagrees { held, asked })
}

impl Scenario {
    fn asks(&mut self, session: u64, want: Want, wait: bool) -> Effects {
        self.input(Input::Acquire { asked: asked(session), want, wait })
    }

    /// A session takes slots, the first one to do so.
    fn has_slots(&mut self, session: u64, slots: &[u16]) {
        self.asks(session, some(u16::try_from(slots.len()).unwrap()), true);
        assert_eq!(self.done(taken(slots)), [has(session, slots, None)]);
    }
}

/// Two sessions hold slots. One gives its slots back, which is answered when their bytes are
/// unlocked; the last one unlocks all.
#[test]
fn slots_come_and_go() {
    let mut n = Scenario::new();
    assert_eq!(n.asks(1, some(1), false), [Effect::File { name: name("n"), op: take(1, false), file: None }]);
    assert_eq!(n.done(taken(&[0])), [has(1, &[0], None)]);
    assert_eq!(n.asks(2, some(2), false), [file(take(2, true))]);
    assert_eq!(n.done(taken(&[1, 3])), [has(2, &[1, 3], None)]);
    assert_eq!(n.release(2), [file(FileOp::Give { of: 4, first: 1, count: 1 })]);
    assert_eq!(n.done(Outcome::Given), [file(FileOp::Give { of: 4, first: 3, count: 1 })]);
    assert_eq!(n.done(Outcome::Given), [released(2)]);
    assert_eq!(n.release(1), [file(FileOp::Unlock)]);
}

/// A request wants more slots than are free: it waits, and gets its slots as soon as they are
/// there. Requests behind it wait or are refused, although they could have a slot.
#[test]
fn slots_are_first_come_first_served() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0, 1]);
    assert_eq!(n.asks(2, some(3), true), []);
    let holder = Claim { slots: [0, 1].into(), ..Claim::new(SessionId(1), some(2), 0) };
    assert_eq!(n.asks(3, some(1), false), [says(3, Answer::BusyHere(Some(holder)))]);
    assert_eq!(n.asks(4, some(1), true), []);
    assert_eq!(n.release(1), [Effect::Arm(turn(), TURN_MS), file(take(3, false))]);
    assert_eq!(n.done(taken(&[0, 1, 2])), [released(1), has(2, &[0, 1, 2], None), file(take(1, true))]);
    assert_eq!(n.done(taken(&[3])), [has(4, &[3], None)]);
}

/// Other daemons have the missing slots: a request that does not wait is refused; one that waits is
/// tried again when the retry timer runs out, or at once when a slot is given back here.
#[test]
fn slots_are_held_elsewhere() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0]);
    n.has_slots_beside(2, &[1]);
    n.asks(3, some(2), false);
    assert_eq!(n.done(Outcome::Refused), [says(3, Answer::BusyElsewhere)]);
    n.asks(3, some(2), true);
    assert!(matches!(n.done(Outcome::Refused)[..], [Effect::Arm(Timer::Retry, _), Effect::Contended(_)]));
    assert_eq!(n.elapsed(Timer::Retry), [file(take(2, true))]);
    n.done(Outcome::Refused);
    n.release(1);
    assert_eq!(n.done(Outcome::Given), [released(1), file(take(2, true))]);
    assert_eq!(n.done(taken(&[0, 2])), [has(3, &[0, 2], None)]);
}

/// The file server falls silent while a session joins others that have slots: their slots are lost,
/// and are given back once the new ones are taken.
#[test]
fn silence_while_slots_are_taken() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0]);
    assert_eq!(n.asks(2, some(1), true), [file(take(1, true))]);
    assert!(matches!(n.input(Input::Silence("silent"))[..], [Effect::Lost { session: SessionId(1), .. }]));
    let Mode::Slots(of) = FOUR else { unreachable!("it is a number of slots") };
    let give = FileOp::Give { of, first: 0, count: 1 };
    assert_eq!(n.done(taken(&[1])), [has(2, &[1], None), file(give)]);
}

impl Scenario {
    fn has_slots_beside(&mut self, session: u64, slots: &[u16]) {
        let count = u16::try_from(slots.len()).unwrap();
        assert_eq!(self.asks(session, some(count), true), [file(take(count, true))]);
        assert_eq!(self.done(taken(slots)), [has(session, slots, None)]);
    }
}

/// Another number of slots, or a shared lock, does not go with slots: it is refused at once,
/// waiting or not, here and elsewhere. An exclusive request waits as for any holder.
#[test]
fn numbers_have_to_agree() {
    let five = Mode::Slots(5);
    let mut n = Scenario::new();
    n.has_slots(1, &[0]);
    assert_eq!(n.asks(2, five.into(), true), [disagrees(2, FOUR, five)]);
    assert_eq!(n.try_it(2, Shared), [disagrees(2, FOUR, Shared)]);
    assert_eq!(n.asks(1, five.into(), true), [disagrees(1, FOUR, five)]);
    assert_eq!(n.asks(1, some(2), true), [says(1, Answer::Mismatch)]);
    assert_eq!(n.wait(3, Exclusive), []);
    let mut n = Scenario::new();
    n.held(1, Shared);
    assert_eq!(n.asks(2, some(1), true), [disagrees(2, Shared, FOUR)]);
    let mut n = Scenario::new();
    n.asks(1, some(1), true);
    assert_eq!(n.done(Outcome::Disagrees(five))[0], disagrees(1, five, FOUR));
    n.wait(2, Shared);
    assert_eq!(n.done(Outcome::Disagrees(five))[0], disagrees(2, five, Shared));
}

/// A daemon has passed slots on among its own sessions for long enough: its waiters leave the next
/// slots to others for a while.
#[test]
fn the_turn_with_slots_ends() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0, 1]);
    n.has_slots_beside(2, &[2, 3]);
    n.asks(3, some(1), true);
    n.asks(4, some(2), true);
    n.release(1);
    n.done(Outcome::Given);
    n.done(taken(&[0]));
    assert_eq!(n.elapsed(turn()), []);
    n.release(2);
    assert_eq!(n.done(Outcome::Given), [released(2), Effect::Arm(turn(), YIELD_MS)]);
    assert_eq!(n.elapsed(turn()), [file(take(2, true))]);
}

/// A session ends while its slots are being taken: they are given back, and other sessions keep
/// theirs.
#[test]
fn the_taker_leaves() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0]);
    n.asks(2, some(2), true);
    n.leave(2);
    assert_eq!(n.done(taken(&[1, 2])), [file(FileOp::Give { of: 4, first: 1, count: 2 })]);
    assert_eq!(n.done(Outcome::Given), []);
}

/// A take finds that the file was deleted: sessions that hold slots are told, and the request gets
/// a slot that is real.
#[test]
fn slots_are_lost() {
    let mut n = Scenario::new();
    n.has_slots(1, &[0]);
    n.asks(2, some(1), true);
    let again = file(take(1, false));
    assert_eq!(n.done(Outcome::Lost("gone")), [lost(1, "gone"), Effect::Arm(turn(), TURN_MS), again]);
}

/// A grant carries the fence that was taken with it. When the storage fails to keep a fence, only
/// the request that wants it is refused.
#[test]
fn grants_with_fences() {
    let mut n = Scenario::new();
    let exclusive = fenced(Exclusive.into());
    let with = |session, mode, fence| {
        says(session, Answer::Granted { mode, already: false, slots: Box::default(), fence: Some(fence) })
    };
    let op = FileOp::TryFence(Exclusive);
    assert_eq!(n.asks(1, exclusive, true), [Effect::File { name: name("n"), op, file: None }]);
    assert_eq!(n.done(Outcome::Fenced(Ok(7))), [with(1, Exclusive, 7)]);
    n.asks(2, exclusive, true);
    n.wait(3, Exclusive);
    n.release(1);
    let refused = says(2, Answer::Storage(fault()));
    assert_eq!(n.done(Outcome::Fenced(Err(fault()))), [released(1), refused, granted(3, Exclusive)]);
    n.release(3);
    n.done(UNLOCKED);
    n.held(1, Shared);
    assert_eq!(n.asks(2, fenced(Shared.into()), true), [file(FileOp::ProbeFence(Shared))]);
    assert_eq!(n.done(Outcome::Fenced(Ok(8))), [with(2, Shared, 8)]);
    assert_eq!(n.asks(1, fenced(Shared.into()), true), [file(FileOp::ProbeFence(Shared))]);
    let answer = Answer::Granted { mode: Shared, already: true, slots: Box::default(), fence: Some(9) };
    assert_eq!(n.done(Outcome::Fenced(Ok(9))), [says(1, answer)]);
    assert_eq!(n.asks(1, fenced(Shared.into()), true), [probe(Shared)], "it has one");
}

/// A waiter that wants a fence meets a contender: it polls as cheaply as others, and takes the
/// fence once it has the lock.
#[test]
fn a_fence_after_a_retry() {
    let mut n = Scenario::new();
    n.asks(1, fenced(Exclusive.into()), true);
    n.done(Outcome::Refused);
    assert_eq!(n.elapsed(Timer::Retry), [file(FileOp::Retry(Exclusive))]);
    let again = file(FileOp::TryFence(Exclusive));
    assert_eq!(n.done(Outcome::Locked), [Effect::Arm(turn(), TURN_MS), again]);
}

/// Slots come with a fence.
#[test]
fn slots_with_fences() {
    let mut n = Scenario::new();
    let op = FileOp::Take { of: 4, take: 1, joins: false, fence: true };
    assert_eq!(n.asks(1, fenced(some(1)), true), [Effect::File { name: name("n"), op, file: None }]);
    let outcome = Outcome::Taken { slots: [0].into(), fence: Some(Ok(91)) };
    assert_eq!(n.done(outcome), [has(1, &[0], Some(91))]);
    n.asks(2, fenced(some(1)), true);
    let outcome = Outcome::Taken { slots: [1].into(), fence: Some(Err(fault())) };
    let give = file(FileOp::Give { of: 4, first: 1, count: 1 });
    assert_eq!(n.done(outcome), [says(2, Answer::Storage(fault())), give]);
}
