//! What calls have in common on every kind of file system: their results, and what comes after one.

use distrilock_protocol::want::Mode;

use crate::fault::Fault;
use crate::message::Outcome;

/// The result of a system call of [`local`](super::local) or [`nfs4`](super::nfs4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallResult {
    /// It is done; for a question: yes.
    Yes,
    /// Lock: another process is in the way; for a question: no.
    No,
    /// Check: the name means no file; open to read: there is none.
    Gone,
    /// Uses, lock number: another process has the file in this mode, which does not go with the
    /// request.
    Uses(Mode),
    /// Lock slots: these are locked.
    Slots(Box<[u16]>),
    /// Fence: the number.
    Fence(u64),
    /// Stamp: its age in milliseconds, if there is one.
    Stamp(Option<u64>),
    /// The system refused.
    Failed(Fault),
}

/// What comes next in an operation whose calls are `C`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next<C> {
    /// Make this call.
    Call(C),
    /// The operation is complete.
    End(Outcome),
}

/// Which locks the operation has on its open file.
///
/// ```text
///              lock    lock turn   unlock turn   unlock, close
///   Nothing    Some    WithTurn
///   Some       Some    WithTurn                  Nothing
///   WithTurn           WithTurn    Some          Nothing
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Locks {
    /// None (on NFS: none but the anchor).
    Nothing,
    /// At least one, in whichever mode.
    Some,
    /// The byte of the process that takes slots, so that no other process can take any; and maybe
    /// more.
    WithTurn,
}

impl Locks {
    /// A lock on the file was granted, which is not the turn's byte.
    pub(super) fn locked(&mut self) {
        *self = (*self).max(Self::Some);
    }
}

/// The outcome of a probe of a real lock, with what is known of the stamp.
pub(super) fn stamped(result: CallResult) -> Outcome {
    Outcome::Stamped(match result {
        CallResult::Stamp(age_ms) => Ok(age_ms),
        CallResult::Failed(fault) => Err(fault),
        result => unreachable!("{result:?} is no stamp"),
    })
}

/// The outcome with its fence, or the reason why there is none.
pub(super) fn with_fence(end: Outcome, result: CallResult) -> Outcome {
    let fence = match result {
        CallResult::Fence(number) => Ok(number),
        CallResult::Failed(fault) => Err(fault),
        result => unreachable!("{result:?} is no fence"),
    };
    match end {
        Outcome::Taken { slots, .. } => Outcome::Taken { slots, fence: Some(fence) },
        _ => Outcome::Fenced(fence),
    }
}
