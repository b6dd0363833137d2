//! Runs of the steps with a script of results, and with results at random.

use super::*;
use crate::fault::Operation;

fn run(op: FileOp, open: bool, locked: Option<Mode>, script: &[(Call, CallResult)]) -> Outcome {
    let (mut steps, mut next) = Steps::begin(op, open, locked);
    for (call, result) in script {
        assert_eq!(next, Next::Call(*call), "{script:?}");
        next = steps.returned(result.clone());
    }
    match next {
        Next::End(outcome) => outcome,
        Next::Call(call) => panic!("{call:?} was not expected"),
    }
}

/// A try whose file was deleted before the lock was granted leaves it and starts over with the new
/// one.
#[test]
fn a_deleted_file_is_left() {
    let mode = Mode::Exclusive;
    let script = [
        (Call::Lock(mode), CallResult::Yes),
        (Call::Check, CallResult::Gone),
        (Call::Unlock, CallResult::Yes),
        (Call::Close, CallResult::Yes),
        (Call::Open, CallResult::Yes),
        (Call::Lock(mode), CallResult::Yes),
        (Call::Check, CallResult::Yes),
    ];
    assert_eq!(run(FileOp::Try(mode), true, None, &script), Outcome::Locked);
}

/// A refusal counts only if the name still means the locked file, and only if byte 0 of it is
/// locked.
#[test]
fn a_refusal_is_looked_at_twice() {
    let mode = Mode::Exclusive;
    let mut script =
        vec![(Call::Lock(mode), CallResult::No), (Call::Check, CallResult::No), (Call::Close, CallResult::Yes)];
    script.extend([(Call::Open, CallResult::Yes), (Call::Lock(mode), CallResult::No), (Call::Check, CallResult::Yes)]);
    let mut held = script.clone();
    held.push((Call::Held(mode), CallResult::Yes));
    assert_eq!(run(FileOp::Try(mode), true, None, &held), Outcome::Refused);
    for _ in 0..LOOKS_MAX {
        script.extend([(Call::Held(mode), CallResult::No), (Call::Yield, CallResult::Yes)]);
        script.extend([(Call::Lock(mode), CallResult::No), (Call::Check, CallResult::Yes)]);
    }
    script.push((Call::Held(mode), CallResult::No));
    assert_eq!(run(FileOp::Try(mode), true, None, &script), Outcome::Disturbed);
}

/// Slots are taken in the process's turn, under a lock that says so, in the file that the name
/// means. A disagreement about their number leaves nothing behind.
#[test]
fn slots_are_taken_in_turn() {
    let op = FileOp::Take { of: 4, take: 2, joins: false, fence: true };
    let mut script = vec![
        (Call::Unlock, CallResult::Yes),
        (Call::LockTurn, CallResult::Yes),
        (Call::LockHeld, CallResult::Yes),
        (Call::Check, CallResult::Yes),
    ];
    let mut other = script.clone();
    let taken = Box::from([1, 2]);
    script.extend([
        (Call::LockNumber(4), CallResult::Yes),
        (Call::LockSlots(4, 2), CallResult::Slots(taken)),
        (Call::Fence(Mode::Slots(4)), CallResult::Fence(91)),
        (Call::UnlockTurn, CallResult::Yes),
    ]);
    let outcome = run(op, true, Some(Mode::Exclusive), &script);
    assert_eq!(outcome, Outcome::Taken { slots: [1, 2].into(), fence: Some(Ok(91)) });
    other.push((Call::LockNumber(4), CallResult::Uses(Mode::Slots(5))));
    other.push((Call::Unlock, CallResult::Yes));
    assert_eq!(run(op, true, Some(Mode::Exclusive), &other), Outcome::Disagrees(Mode::Slots(5)));
}

/// A process that has slots and takes more keeps what it has, whatever the outcome.
#[test]
fn a_take_that_joins_keeps_the_rest() {
    let op = FileOp::Take { of: 4, take: 2, joins: true, fence: false };
    let mut script =
        vec![(Call::LockTurn, CallResult::No), (Call::Check, CallResult::Yes), (Call::Uses, CallResult::No)];
    script.push((Call::Yield, CallResult::Yes));
    script.extend([(Call::LockTurn, CallResult::Yes), (Call::Check, CallResult::Yes)]);
    script.extend([(Call::LockSlots(4, 2), CallResult::No), (Call::UnlockTurn, CallResult::Yes)]);
    assert_eq!(run(op, true, Some(Mode::Slots(4)), &script), Outcome::Refused);
    let script =
        [(Call::LockTurn, CallResult::Yes), (Call::Check, CallResult::Gone), (Call::UnlockTurn, CallResult::Yes)];
    assert!(matches!(run(op, true, Some(Mode::Slots(4)), &script), Outcome::Lost(_)));
}

/// A try fails after it has opened the file, which may be new: the file stays open, without a lock,
/// so that the engine deletes it later.
#[test]
fn a_failed_try_keeps_the_file() {
    let mode = Mode::Exclusive;
    let failed = || CallResult::Failed(Fault::system(Operation::Stat, "", 5));
    let end = Outcome::Failed(Fault::system(Operation::Stat, "", 5));
    let script = [(Call::Open, CallResult::Yes), (Call::Lock(mode), failed())];
    assert_eq!(run(FileOp::Try(mode), false, None, &script), end);
    let script = [
        (Call::Open, CallResult::Yes),
        (Call::Lock(mode), CallResult::Yes),
        (Call::Check, failed()),
        (Call::Unlock, CallResult::Yes),
    ];
    assert_eq!(run(FileOp::TryFence(mode), false, None, &script), end);
    let op = FileOp::Take { of: 4, take: 2, joins: false, fence: true };
    let script = [
        (Call::Open, CallResult::Yes),
        (Call::LockTurn, CallResult::Yes),
        (Call::LockHeld, failed()),
        (Call::Unlock, CallResult::Yes),
    ];
    assert_eq!(run(op, false, None, &script), end);
    // A file that was opened for a peek was there before; a lingering one stays.
    let script = [
        (Call::OpenToRead, CallResult::Yes),
        (Call::Held(mode), CallResult::Yes),
        (Call::Check, failed()),
        (Call::Close, CallResult::Yes),
    ];
    assert_eq!(run(FileOp::Peek, false, None, &script), end);
    assert_eq!(run(FileOp::Peek, true, None, &[(Call::Check, failed())]), end);
}

/// Two processes that share a file retire it at the same time. Each finds the other's lock in its
/// way, and asks again once it has none of its own: the one that asks last deletes the file.
#[test]
fn those_who_share_do_not_leave_the_file() {
    let mut script = vec![
        (Call::LockToDelete, CallResult::No),
        (Call::Unlock, CallResult::Yes),
        (Call::LockToDelete, CallResult::No),
        (Call::Close, CallResult::Yes),
    ];
    let end = Outcome::Unlocked { file_gone: false };
    assert_eq!(run(FileOp::Retire, true, Some(Mode::Shared), &script), end);
    script.truncate(2);
    script.extend([
        (Call::LockToDelete, CallResult::Yes),
        (Call::Check, CallResult::Yes),
        (Call::Unlink, CallResult::Yes),
        (Call::Unlock, CallResult::Yes),
        (Call::Close, CallResult::Yes),
    ]);
    assert_eq!(run(FileOp::Retire, true, Some(Mode::Slots(4)), &script), end);
}

fn is_refusal(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused | Outcome::Disturbed | Outcome::Failed(_))
}

/// Whatever the results, an operation ends, and a try that ends without a lock leaves none behind.
#[test]
fn every_path_ends() {
    let fault = Fault::system(Operation::Stat, "", 5);
    let results = [CallResult::Yes, CallResult::No, CallResult::Gone, CallResult::Failed(fault)];
    let shared = Mode::Shared;
    let take = |joins, fence| FileOp::Take { of: 4, take: 2, joins, fence };
    let ops = [
        FileOp::Try(shared),
        FileOp::TryFence(shared),
        take(false, false),
        take(true, true),
        FileOp::Give { of: 4, first: 1, count: 2 },
        FileOp::Probe(shared),
        FileOp::ProbeFence(shared),
        FileOp::Stamp(shared, None),
        FileOp::Stamp(shared, Some(7)),
        FileOp::Unlock,
        FileOp::Retire,
        FileOp::Peek,
    ];
    for (op, seed) in ops.into_iter().flat_map(|op| (0..5000_u64).map(move |seed| (op, seed))) {
        let joins = matches!(op, FileOp::Take { joins: true, .. } | FileOp::Give { .. });
        let takes = matches!(op, FileOp::Try(_) | FileOp::TryFence(_) | FileOp::Take { .. });
        let fresh = seed % 3 == 0 && !joins && (takes || op == FileOp::Peek);
        let locked = (joins || !fresh && seed % 3 == 1 && op != FileOp::Peek).then_some(Mode::Shared);
        let (mut steps, mut next) = Steps::begin(op, !fresh, locked);
        let mut random = seed;
        for _ in 0..100_000 {
            let Next::Call(call) = &next else { break };
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let result = &results[usize::try_from(random >> 62).unwrap()];
            let possible = match call {
                Call::Stamp(age_ms) if *result != results[3] => &CallResult::Stamp(age_ms.map(u64::from)),
                Call::Fence(_) if *result != results[3] => &CallResult::Fence(7),
                Call::LockSlots(..) if *result == CallResult::Yes => &CallResult::Slots([1, 3].into()),
                Call::LockNumber(_) | Call::Uses if *result == CallResult::Gone => &CallResult::Uses(Mode::Slots(3)),
                Call::Uses if *result == CallResult::Yes => &CallResult::Uses(Mode::Exclusive),
                Call::LockTurn | Call::LockHeld | Call::LockSlots(..) if *result == CallResult::Gone => &CallResult::No,
                Call::UnlockTurn | Call::UnlockSlots(..) if *result != results[3] => &CallResult::Yes,
                Call::Yield | Call::Close => &CallResult::Yes,
                Call::Unlock if *result != CallResult::Yes => &results[3],
                Call::Open if matches!(result, CallResult::No | CallResult::Gone) => &CallResult::Yes,
                Call::Lock(_) | Call::LockToDelete | Call::Held(_) if *result == CallResult::Gone => &CallResult::No,
                _ => result,
            };
            next = steps.returned(possible.clone());
        }
        let Next::End(outcome) = next else { panic!("{op:?} {seed} did not end") };
        let fits = match op {
            FileOp::Try(_) | FileOp::Retry(_) => {
                matches!(outcome, Outcome::Locked | Outcome::Disagrees(_)) || is_refusal(&outcome)
            }
            FileOp::TryFence(_) => {
                matches!(outcome, Outcome::Fenced(_) | Outcome::Disagrees(_)) || is_refusal(&outcome)
            }
            FileOp::Take { joins, .. } => {
                let taken = matches!(outcome, Outcome::Taken { .. } | Outcome::Disagrees(_));
                taken || is_refusal(&outcome) || (joins && matches!(outcome, Outcome::Lost(_)))
            }
            FileOp::Give { .. } => matches!(outcome, Outcome::Given | Outcome::Failed(_)),
            FileOp::ProbeFence(_) => {
                matches!(outcome, Outcome::Fenced(_) | Outcome::Lost(_) | Outcome::Failed(_))
            }
            FileOp::Stamp(..) => {
                matches!(outcome, Outcome::Stamped(_) | Outcome::Lost(_) | Outcome::Failed(_))
            }
            FileOp::Probe(_) => matches!(outcome, Outcome::Real | Outcome::Lost(_) | Outcome::Failed(_)),
            FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire => {
                matches!(outcome, Outcome::Unlocked { .. })
            }
            FileOp::Peek => matches!(outcome, Outcome::Peeked { .. } | Outcome::Failed(_)),
        };
        assert!(fits, "{op:?} {seed} ended as {outcome:?}");
        if takes && !joins {
            let locks = matches!(outcome, Outcome::Locked | Outcome::Fenced(_) | Outcome::Taken { .. });
            assert_eq!(steps.is_locked(), locks, "{op:?} {seed} {outcome:?}");
        }
    }
}
