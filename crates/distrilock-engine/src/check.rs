//! The engine's invariants of one name, as asserts. The engine checks the name that an input was
//! about after every input in debug builds; tests check all of them.

use distrilock_protocol::name::LockName;
use distrilock_protocol::want::{Extent, Mode};

use crate::message::FileOp;
use crate::record::{File, Record};
use crate::state::Turn;

/// Queues up to this length are compared waiter by waiter.
const SMALL: usize = 16;

/// Checks a record; `will_try` says whether a timer is going to try the name.
pub(crate) fn record<F>(name: &LockName, record: &Record<F>, will_try: bool) {
    check_holders(name, record);
    let in_flight = record.file.is_in_flight();
    let sessions = record.waiters.iter().map(|waiter| waiter.claim.session);
    let twice = |n, session| sessions.clone().skip(n + 1).any(|other| other == session);
    let few = record.waiters.len() <= SMALL;
    assert!(!few || !sessions.clone().enumerate().any(|(n, session)| twice(n, session)), "I8: {name}");
    assert!(in_flight || record.releases.is_empty(), "I9: {name} at rest with an unanswered release");
    assert!(in_flight || record.queries.is_empty(), "I6: {name} at rest with an unanswered query");
    if !in_flight && !record.waiters.is_empty() {
        let yields = record.turn == Turn::Yielding;
        let contended = record.contention.is_contended() && will_try;
        assert!(!record.holders.is_empty() || contended || yields, "I7: {name} waits for nothing");
        let disturbed = contended && record.contention.is_disturbed();
        assert!(
            disturbed || record.waiters.iter().all(|waiter| waiter.waits),
            "I6: {name} at rest with an unanswered try"
        );
        let head = record.waiters[0].claim.extent;
        let joins = head == Extent::Shared && record.holders.iter().all(|holder| holder.extent == Extent::Shared);
        assert!(!joins || record.holders.is_empty(), "I7: {name} has a shared waiter that could enter");
        assert!(!slots_are_free(record) || contended || yields, "I7: {name} has slots for a waiter");
    }
    assert!(!record.is_void(), "I10: {name} has a record that says nothing");
    assert!(!record.idles() || record.linger.is_listed(), "I10: {name} is idle and not in the linger queue");
}

fn check_holders<F>(name: &LockName, record: &Record<F>) {
    let alone = record.holders.len() == 1;
    let shared = record.holders.iter().all(|holder| holder.extent == Extent::Shared);
    assert!(alone || shared || slots_differ(record), "I1: {name}");
    if let Some(holder) = record.holders.first() {
        match &record.file {
            File::Locked(_, mode) | File::InFlight { op: FileOp::Probe(mode) | FileOp::ProbeFence(mode), .. } => {
                assert_eq!(*mode, holder.mode(), "I2: {name}");
            }
            File::InFlight { op: FileOp::Take { of, joins: true, .. } | FileOp::Give { of, .. }, .. } => {
                assert_eq!(Mode::Slots(*of), holder.mode(), "I2: {name}");
            }
            _ => panic!("I2: {name} is held without a locked file"),
        }
    }
}

/// Whether the first waiter wants slots that nobody here has, of the number that is in use.
fn slots_are_free<F>(record: &Record<F>) -> bool {
    let Some(Mode::Slots(of)) = record.holders.first().map(|holder| holder.mode()) else { return false };
    let head = record.waiters[0].claim.extent;
    head.mode() == Mode::Slots(of) && record.slots_held() + usize::from(head.slots()) <= usize::from(of)
}

/// Whether all holders have slots of one number, and none is held twice.
fn slots_differ<F>(record: &Record<F>) -> bool {
    let Some(Mode::Slots(of)) = record.holders.first().map(|holder| holder.mode()) else { return false };
    let mut slots: Vec<u16> = record.holders.iter().flat_map(|holder| &*holder.slots).copied().collect();
    let count = slots.len();
    slots.sort_unstable();
    slots.dedup();
    let valid = slots.len() == count && slots.iter().all(|slot| *slot < of);
    valid
        && record
            .holders
            .iter()
            .all(|holder| holder.mode() == Mode::Slots(of) && holder.slots.len() == usize::from(holder.extent.slots()))
}
