//! How a lock is written for the next process of the daemon. The text is a format: a daemon of
//! another version reads it.

use serde::{Deserialize, Serialize};

use distrilock_engine::{Claim, Extent, Handed, HandedWaiter, Mode, RequestId, SessionId};
use distrilock_protocol::name::LockName;

/// A [`Handed`] name. `F` describes its open file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HandedLock<F> {
    name: LockName,
    file: Option<F>,
    pub(super) locked: Option<Mode>,
    holders: Vec<WrittenClaim>,
    waiters: Vec<WrittenWaiter>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenClaim {
    session: SessionId,
    mode: Mode,
    since_ms: u64,
    /// How long its request waited: the previous process may not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    waited_ms: u64,
    /// How many slots it holds or wants; 0 unless the mode has slots.
    take: u16,
    slots: Box<[u16]>,
    fence: Option<u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenWaiter {
    seen: WrittenClaim,
    request: RequestId,
    waits: bool,
    fence: bool,
}

impl<F> From<Handed<F>> for HandedLock<F> {
    fn from(handed: Handed<F>) -> Self {
        let Handed { name, file, locked, holders, waiters } = handed;
        let holders = holders.into_iter().map(WrittenClaim::from).collect();
        let waiters = waiters.into_iter().map(WrittenWaiter::from).collect();
        Self { name, file, locked, holders, waiters }
    }
}

impl<F> From<HandedLock<F>> for Handed<F> {
    fn from(lock: HandedLock<F>) -> Self {
        let HandedLock { name, file, locked, holders, waiters } = lock;
        let holders = holders.into_iter().map(Claim::from).collect();
        let waiters = waiters.into_iter().map(HandedWaiter::from).collect();
        Self { name, file, locked, holders, waiters }
    }
}

impl From<Claim> for WrittenClaim {
    fn from(claim: Claim) -> Self {
        let Claim { session, extent, since_ms, waited_ms, slots, fence } = claim;
        Self { session, mode: extent.mode(), since_ms, waited_ms, take: extent.slots(), slots, fence }
    }
}

impl From<WrittenClaim> for Claim {
    fn from(written: WrittenClaim) -> Self {
        let WrittenClaim { session, mode, since_ms, waited_ms, take, slots, fence } = written;
        Self { session, extent: Extent::new(mode, take), since_ms, waited_ms, slots, fence }
    }
}

impl From<HandedWaiter> for WrittenWaiter {
    fn from(waiter: HandedWaiter) -> Self {
        let HandedWaiter { claim, request, waits, fence } = waiter;
        Self { seen: claim.into(), request, waits, fence }
    }
}

impl From<WrittenWaiter> for HandedWaiter {
    fn from(written: WrittenWaiter) -> Self {
        let WrittenWaiter { seen, request, waits, fence } = written;
        Self { claim: seen.into(), request, waits, fence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distrilock_engine::Want;

    /// Two names, one with slots: the next process, which may be of another version, reads this
    /// text, and understands the same.
    #[test]
    fn the_text_between_processes() {
        let extent = Extent::Slots { of: 4, take: 2 };
        let slots = Box::from([0, 3]);
        let holder = Claim { session: SessionId(0x7f4a), extent, since_ms: 50, waited_ms: 8, slots, fence: Some(91) };
        let waiter = |mode: Mode, waits, fence| {
            let claim = Claim::new(SessionId(2), Want::from(mode), 60);
            HandedWaiter { claim, request: RequestId(7), waits, fence }
        };
        let name = || LockName::parse(b"gpu").unwrap();
        let held = Handed {
            name: name(),
            file: Some(5),
            locked: Some(Mode::Slots(4)),
            holders: vec![holder],
            waiters: vec![waiter(Mode::Exclusive, true, false)],
        };
        let wanted = Handed {
            name: name(),
            file: None,
            locked: None,
            holders: Vec::new(),
            waiters: vec![waiter(Mode::Shared, false, true)],
        };
        for (handed, text) in [
            (
                held,
                r#"{"name":"gpu","file":5,"locked":{"Slots":4},"holders":[{"session":32586,"mode":{"Slots":4},"since_ms":50,"waited_ms":8,"take":2,"slots":[0,3],"fence":91}],"waiters":[{"seen":{"session":2,"mode":"Exclusive","since_ms":60,"take":0,"slots":[],"fence":null},"request":7,"waits":true,"fence":false}]}"#,
            ),
            (
                wanted,
                r#"{"name":"gpu","file":null,"locked":null,"holders":[],"waiters":[{"seen":{"session":2,"mode":"Shared","since_ms":60,"take":0,"slots":[],"fence":null},"request":7,"waits":false,"fence":true}]}"#,
            ),
        ] {
            let written = HandedLock::from(handed.clone());
            assert_eq!(serde_json::to_string(&written).unwrap(), text);
            let read: HandedLock<u8> = serde_json::from_str(text).unwrap();
            assert_eq!(Handed::from(read), handed);
        }
    }
}
