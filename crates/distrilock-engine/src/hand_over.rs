//! What goes to the next process of the daemon, and how the engine goes on there. A name goes at
//! rest: with no file operation in flight there is no open question (I6, I9). The next process arms
//! its timers anew.

use std::collections::BTreeMap;

use distrilock_protocol::ids::{RequestId, SessionId};
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

use crate::claim::Claim;
use crate::engine::Engine;
use crate::message::Effect;
use crate::record::{File, Record};
use crate::waiters::Waiter;

/// One name as it goes to the next process. `F` is its open file, or a description of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handed<F> {
    /// The name.
    pub name: LockName,
    /// Its file, if it is open.
    pub file: Option<F>,
    /// The mode in which the file is locked.
    pub locked: Option<Mode>,
    /// Who holds the name.
    pub holders: Vec<Claim>,
    /// Who waits for it, first come first.
    pub waiters: Vec<HandedWaiter>,
}

/// A request that waits for a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HandedWaiter {
    /// Whose it is, and what it wants.
    pub claim: Claim,
    /// The session's number for it.
    pub request: RequestId,
    /// Whether it queues; otherwise it is refused as soon as it cannot enter.
    pub waits: bool,
    /// Whether the grant should carry a fence.
    pub fence: bool,
}

impl<F> Handed<F> {
    /// The same with something else instead of the file.
    pub fn map_file<G>(self, map: impl FnOnce(F) -> G) -> Handed<G> {
        let Self { name, file, locked, holders, waiters } = self;
        Handed { name, file: file.map(map), locked, holders, waiters }
    }

    /// Whether it makes sense: a name that is held has its file locked in the same mode (I2).
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let modes_agree = self.holders.iter().all(|holder| Some(holder.mode()) == self.locked);
        modes_agree
            && (self.locked.is_none() || self.file.is_some())
            && (self.locked.is_some() != self.holders.is_empty())
    }
}

impl<F, E> Handed<Result<F, E>> {
    /// The name with its file, or why there is none.
    ///
    /// # Errors
    /// The error that is there instead of the file.
    pub fn transpose(self) -> Result<Handed<F>, E> {
        let Self { name, file, locked, holders, waiters } = self;
        Ok(Handed { name, file: file.transpose()?, locked, holders, waiters })
    }
}

impl<F> Engine<F> {
    /// The names with a file operation in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = &LockName> {
        self.records.iter().filter(|(_, record)| record.file.is_in_flight()).map(|(name, _)| name)
    }

    /// Takes out what the next process needs. Names with an operation in flight stay, since it may
    /// still be completed; the engine is not used for anything else after that.
    pub fn hand_over(&mut self) -> Vec<Handed<F>> {
        let in_flight = |(_, record): &(LockName, Box<Record<F>>)| record.file.is_in_flight();
        let (busy, records) = std::mem::take(&mut self.records).into_iter().partition::<BTreeMap<_, _>, _>(in_flight);
        self.records = busy;
        let handed = |(name, record): (LockName, Box<Record<F>>)| {
            let record = *record;
            let unused = record.is_unused();
            let (file, locked) = match record.file {
                File::InFlight { .. } => unreachable!("they stay"),
                File::Closed if unused => return None,
                File::Closed => (None, None),
                File::Idle(file) => (Some(file), None),
                File::Locked(file, mode) => (Some(file), Some(mode)),
            };
            let Record { mut holders, mut waiters, .. } = record;
            let waiters = waiters.take().into_iter().map(Waiter::hand_over).collect();
            Some(Handed { name, file, locked, holders: holders.take(), waiters })
        };
        records.into_iter().filter_map(handed).collect()
    }

    /// Takes a name over from the previous process. Sessions for which `lives` is false have ended
    /// in the meantime.
    ///
    /// # Panics
    /// If it [is not sound](Handed::is_sound).
    pub fn take_over(&mut self, handed: Handed<F>, lives: impl Fn(SessionId) -> bool, effects: &mut Vec<Effect<F>>) {
        assert!(handed.is_sound(), "{} is held without a locked file (I2)", handed.name);
        let Handed { name, file, locked, holders, waiters } = handed;
        let sessions = holders.iter().chain(waiters.iter().map(|waiter| &waiter.claim)).map(|claim| claim.session);
        let dead: Vec<SessionId> = sessions.filter(|session| !lives(*session)).collect();
        let file = match locked {
            Some(mode) => File::locked(file, mode),
            None => File::idle(file),
        };
        let (holders, waiters) = (holders.into_iter().collect(), waiters.into_iter().map(Waiter::taken_over).collect());
        self.records.insert(name.clone(), Box::new(Record { file, holders, waiters, ..Record::default() }));
        let cx = &mut self.about(&name, effects);
        for session in dead {
            self.leave(cx, session);
        }
        self.settle(cx);
    }
}

impl Waiter {
    fn hand_over(self) -> HandedWaiter {
        HandedWaiter { claim: self.claim(), request: self.request, waits: self.waits, fence: self.fence }
    }

    fn taken_over(handed: HandedWaiter) -> Self {
        let HandedWaiter { claim, request, waits, fence } = handed;
        let Claim { session, extent, since_ms, .. } = claim;
        Self { session, request, since_ms, extent, fence, waits }
    }
}
