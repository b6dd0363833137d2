//! What a network file system adds: calls that do not come back, and locks that are in doubt or lost without anybody's doing.

use super::Engine;
use super::message::{Answer, Asked, Effect};
use super::record::{File, Record};
use crate::fault::Fault;
use distrilock_protocol::name::LockName;

impl<F> Engine<F> {
    pub(super) fn stalled(&mut self, name: &LockName, fault: &Fault, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        record.stalled(name, fault, effects);
        self.settle(name, effects);
    }

    pub(super) fn probe(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        record.probe = matches!(record.file, File::Locked(..)) && !record.holders.is_empty();
        self.settle(name, effects);
    }

    /// Tells every holder how things stand with its lock.
    pub(super) fn doubt(&self, valid_ms: Option<u64>, effects: &mut Vec<Effect<F>>) {
        for (name, record) in &self.records {
            for holder in &record.holders {
                effects.push(Effect::Doubt { name: name.clone(), session: holder.session, valid_ms });
            }
        }
    }

    pub(super) fn silence(&mut self, reason: &'static str, effects: &mut Vec<Effect<F>>) {
        let held = |(name, record): (&LockName, &Record<F>)| (!record.holders.is_empty()).then(|| name.clone());
        let names: Vec<LockName> = self.records.iter().filter_map(held).collect();
        for name in names {
            self.record(&name).lose(&name, reason, effects);
            self.settle(&name, effects);
        }
    }
}

impl<F> Record<F> {
    /// The operation in flight does not come back: whoever waits for it is refused. A release is not answered as done (I9).
    fn stalled(&mut self, name: &LockName, fault: &Fault, effects: &mut Vec<Effect<F>>) {
        let File::InFlight { queries, .. } = &mut self.file else { return };
        for query in queries.drain(..).chain(self.queries.drain(..)) {
            effects.push(query.asked(name).answer(Answer::Storage(fault.clone())));
        }
        for (session, request) in self.releases.drain(..) {
            let asked = Asked { name: name.clone(), session, request };
            effects.push(asked.answer(Answer::Storage(fault.clone())));
        }
        // Behind holders one waits for them, not for the storage.
        if self.holders.is_empty() {
            self.refuse(name, |_| true, &Answer::Storage(fault.clone()), effects);
        } else {
            self.refuse_tries(name, |_| true, &Answer::Storage(fault.clone()), effects);
        }
    }
}
