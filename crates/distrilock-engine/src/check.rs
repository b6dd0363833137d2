//! The engine's invariants of one name, as asserts. The engine checks the name that an input was
//! about after every input in debug builds; tests check all of them.

use std::collections::BTreeSet;

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::{Extent, Mode};

use crate::claim::Claim;
use crate::message::FileOp;
use crate::record::{File, Record};
use crate::state::Turn;

/// Up to this length, everything is checked; beyond it, only every so often.
const SMALL: usize = 16;

fn is_checked(length: usize) -> bool {
    length <= SMALL || length.is_multiple_of(SMALL * SMALL)
}

/// Checks a record; `will_try` says whether a timer is going to try the name.
pub(crate) fn record<F>(name: &LockName, record: &Record<F>, will_try: bool) {
    check_holders(name, record);
    let in_flight = record.file.is_in_flight();
    if is_checked(record.waiters.len()) {
        let sessions: BTreeSet<SessionId> = record.waiters.iter().map(|waiter| waiter.session).collect();
        assert_eq!(sessions.len(), record.waiters.len(), "I8: {name}");
        record.waiters.check();
    }
    assert!(in_flight || record.releases.is_empty(), "I9: {name} at rest with an unanswered release");
    assert!(in_flight || record.queries.is_empty(), "I6: {name} at rest with an unanswered query");
    if !in_flight && !record.waiters.is_empty() {
        let yields = record.turn == Turn::Yielding;
        let contended = record.contention.is_contended() && will_try;
        assert!(!record.holders.is_empty() || contended || yields, "I7: {name} waits for nothing");
        let disturbed = contended && record.contention.is_disturbed();
        assert!(disturbed || !record.waiters.has(|class| !class.waits), "I6: {name} at rest with an unanswered try");
        let shares = |holder: &Claim| holder.extent == Extent::Shared;
        let head = record.waiters.front().map(|head| head.extent);
        let joins = head == Some(Extent::Shared) && record.holders.front().is_none_or(shares);
        assert!(!joins || record.holders.is_empty(), "I7: {name} has a shared waiter that could enter");
        assert!(!slots_are_free(record) || contended || yields, "I7: {name} has slots for a waiter");
    }
    assert!(!record.is_void(), "I10: {name} has a record that says nothing");
    assert!(!record.idles() || record.linger.is_listed(), "I10: {name} is idle and not in the linger queue");
}

fn check_holders<F>(name: &LockName, record: &Record<F>) {
    if is_checked(record.holders.len()) {
        record.holders.check();
        let alone = record.holders.len() == 1;
        let shared = record.holders.iter().all(|holder| holder.extent == Extent::Shared);
        assert!(alone || shared || slots_differ(record), "I1: {name}");
    }
    if let Some(holder) = record.holders.front() {
        match &record.file {
            File::Locked(_, mode)
            | File::InFlight { op: FileOp::Probe(mode) | FileOp::ProbeFence(mode) | FileOp::Stamp(mode, _), .. } => {
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
    let Some(Mode::Slots(of)) = record.holders.front().map(Claim::mode) else { return false };
    let Some(head) = record.waiters.front().map(|head| head.extent) else { return false };
    head.mode() == Mode::Slots(of) && record.slots_held() + usize::from(head.slots()) <= usize::from(of)
}

/// Whether all holders have slots of one number, and none is held twice.
fn slots_differ<F>(record: &Record<F>) -> bool {
    let Some(Mode::Slots(of)) = record.holders.front().map(Claim::mode) else { return false };
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
