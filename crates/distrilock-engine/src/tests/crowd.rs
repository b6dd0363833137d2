//! Crowds: many sessions wait for one name, or share it. Each step is about a bounded number of
//! them. In tests [`GRANTS_MAX`] and [`REFUSALS_MAX`] are small.

use super::*;
use crate::limits::{GRANTS_MAX, QUERIES_MAX, QUEUE_MAX, REFUSALS_MAX};

const CROWD: u64 = 9;

fn of_step(steps: usize, step: usize, sessions: u64) -> std::ops::RangeInclusive<u64> {
    let first = u64::try_from(step * steps).unwrap() + 2;
    first..=(first + u64::try_from(steps).unwrap() - 1).min(sessions + 1)
}

/// More readers wait than enter in one step: the next ones enter after a probe, in the order in
/// which they came, and a writer behind them does not.
#[test]
fn readers_enter_in_steps() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    for session in 2..=CROWD + 1 {
        assert_eq!(n.wait(session, Shared), []);
    }
    n.wait(100, Exclusive);
    n.release(1);
    let mut effects = n.done(Outcome::Locked);
    assert_eq!(effects.remove(0), released(1));
    for step in 0.. {
        let last = (step + 1) * GRANTS_MAX >= usize::try_from(CROWD).unwrap();
        let mut expected: Effects = of_step(GRANTS_MAX, step, CROWD).map(|session| granted(session, Shared)).collect();
        expected.extend((!last).then(|| probe(Shared)));
        assert_eq!(effects, expected);
        if last {
            break;
        }
        effects = n.done(Outcome::Real);
    }
}

/// The lock is lost before all of the readers have entered: those that have are told, and the
/// others get a lock that is real.
#[test]
fn a_loss_between_two_steps() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    for session in 2..=4 {
        n.wait(session, Shared);
    }
    n.release(1);
    n.done(Outcome::Locked);
    let try_again = file(FileOp::Try(Shared));
    assert_eq!(n.done(Outcome::Lost("deleted")), [lost(2, "deleted"), lost(3, "deleted"), try_again]);
    assert_eq!(n.done(Outcome::Locked), [granted(4, Shared)]);
}

/// The storage fails while a crowd waits: the first ones are refused, the others get another try.
/// Requests that do not wait are refused at once, wherever they stand.
#[test]
fn failures_refuse_in_steps() {
    let mut n = Scenario::new();
    assert_eq!(n.wait(1, Exclusive), [first_try(Exclusive)]);
    for session in 2..=CROWD + 1 {
        assert_eq!(n.wait(session, Exclusive), []);
    }
    assert_eq!(n.try_it(100, Exclusive), []);
    let refused = |session| says(session, Answer::Storage(fault()));
    assert_eq!(n.closed(Outcome::Failed(fault())), [refused(1), first_try(Exclusive)]);
    let mut effects = n.closed(Outcome::Failed(fault()));
    assert_eq!(effects.remove(0), refused(100));
    let mut left = 2..=CROWD + 1;
    loop {
        let mut expected: Effects = left.by_ref().take(REFUSALS_MAX).map(refused).collect();
        if left.is_empty() {
            assert_eq!(effects, expected);
            break;
        }
        expected.push(Effect::File { name: name("n"), op: FileOp::Retry(Exclusive), file: None });
        assert_eq!(effects, expected);
        effects = n.closed(Outcome::Failed(fault()));
    }
}

/// A queue is full: one more request is refused, whether it waits or not, and one that leaves makes
/// room.
#[test]
fn a_full_queue() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    let mut effects = Vec::new();
    let last = u64::try_from(QUEUE_MAX).unwrap() + 1;
    for session in 2..=last {
        n.engine.input(Input::Acquire { asked: asked(session), want: Exclusive.into(), wait: true }, &mut effects);
    }
    assert_eq!(effects, []);
    assert_eq!(n.wait(last + 1, Exclusive), [says(last + 1, Answer::QueueFull)]);
    assert_eq!(n.try_it(last + 1, Shared), [says(last + 1, Answer::QueueFull)]);
    assert_eq!(n.withdraw(last / 2, Withdrawal::Cancelled), [says(last / 2, Answer::Cancelled)]);
    assert_eq!(n.wait(last + 1, Exclusive), []);
    n.leave(3);
    n.release(1);
    assert_eq!(n.done(Outcome::Locked), [released(1), granted(2, Exclusive)]);
    n.release(2);
    assert_eq!(n.done(Outcome::Locked), [released(2), granted(4, Exclusive)]);
}

/// Those who wait for a name and those who share it leave in any order, and the order of the others
/// stays.
#[test]
fn any_of_a_crowd_may_leave() {
    let mut n = Scenario::new();
    n.held(1, Shared);
    (2..=6).for_each(|session| n.joined(session));
    for session in 11..=16 {
        n.wait(session, if session % 2 == 0 { Shared } else { Exclusive });
    }
    n.leave(4);
    n.withdraw(12, Withdrawal::TimedOut);
    n.leave(13);
    for session in [6, 1, 3, 2] {
        assert_eq!(n.release(session), [released(session)]);
    }
    assert_eq!(n.release(5), [Effect::Arm(turn(), TURN_MS), file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Locked), [released(5), granted(11, Exclusive)]);
    n.release(11);
    assert_eq!(n.done(Outcome::Locked), [released(11), granted(14, Shared)]);
}

/// Questions pile up while an operation is under way: there are only so many, and those beyond are
/// refused at once. The operation's end answers the others.
#[test]
fn questions_are_bounded() {
    let mut n = Scenario::new();
    assert_eq!(n.try_it(1, Exclusive), [first_try(Exclusive)]);
    let first = 2..2 + u64::try_from(QUERIES_MAX).unwrap();
    for session in first.clone() {
        assert_eq!(n.input(Input::Peek(asked(session))), []);
    }
    assert_eq!(n.input(Input::Peek(asked(1000))), [says(1000, Answer::QueueFull)]);
    assert_eq!(n.done(Outcome::Locked).len(), 1 + first.count());
    assert_eq!(n.input(Input::Peek(asked(1000))).len(), 1);
}
