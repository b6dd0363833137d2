//! What comes from the daemon, and what it means for the session.

use std::collections::BTreeMap;

use tokio::sync::{oneshot, watch};

use super::record::{Held, Standing};
use super::{Answer, Effect, Kind, NoAnswer, Offer, Pending, Session};
use crate::boot::BootTime;
use crate::error::{AcquireError, Disconnected, Excerpt, Lost};
use crate::message::{self, Head, Refusal};
use distrilock_protocol::name::LockName;

impl Session {
    /// Takes a message of the daemon.
    pub(crate) fn receive(&mut self, now: BootTime, text: &[u8]) {
        if self.ended.is_some() {
            return;
        }
        let head: Head = match serde_json::from_slice(text) {
            Ok(head) => head,
            Err(error) => return self.garbage(format!("{error}: {}", Excerpt(text))),
        };
        match (&head.event, head.id, head.ok) {
            (Some(event), None, None) => self.event(now, &event.clone(), &head),
            (None, Some(id), Some(ok)) => match self.pending.remove(&id) {
                Some(pending) => self.reply(now, pending, ok, &head, text),
                None => self.garbage(format!("a reply to no request: {}", Excerpt(text))),
            },
            // The daemon's last words.
            (None, None, Some(false)) => {
                let Refusal { word, message, .. } = head.refusal();
                self.end(&Disconnected::Told { word, message });
            }
            _ => self.garbage(format!("neither reply nor event: {}", Excerpt(text))),
        }
    }

    /// Once one message is not understood, none of those before and after it can be relied on.
    fn garbage(&mut self, what: String) {
        self.end(&Disconnected::Garbage { what });
    }

    fn event(&mut self, now: BootTime, event: &str, head: &Head) {
        let Some(lock) = head.lock() else { return };
        let timing = self.timing;
        for held in self.held.values_mut().filter(|held| held.names.contains(&lock)) {
            match (event, head.valid_ms) {
                ("lost", _) => {
                    held.names.retain(|name| *name != lock);
                    self.names.remove(&lock);
                    held.lose(Lost::Told { lock: lock.clone(), reason: head.reason() });
                }
                ("suspect", valid_ms) => {
                    // Without a time there is none left.
                    let until = now + timing.valid(valid_ms.unwrap_or(0));
                    held.suspects.insert(lock.clone(), until);
                    held.stand();
                }
                ("held", _) => {
                    held.suspects.remove(&lock);
                    held.stand();
                }
                // An event of a newer daemon.
                _ => {}
            }
        }
        self.check(now);
    }

    fn reply(&mut self, now: BootTime, pending: Pending, ok: bool, head: &Head, text: &[u8]) {
        let Pending { sent, kind } = pending;
        self.proof = self.proof.max(sent);
        let valid_until = head.valid_ms.map(|valid_ms| sent + self.timing.valid(valid_ms));
        match kind {
            Kind::Ping => {
                self.pinging = false;
                self.prove(valid_until);
            }
            Kind::Cancel => {}
            Kind::Acquire { names, waits, to } if ok => self.granted(now, &names, (waits, valid_until), to, text),
            Kind::Acquire { names, to, .. } => {
                self.free(&names);
                let Refusal { word, message, lock } = head.refusal();
                self.effects.push(Effect::NotGranted { to, error: AcquireError::refused(word, message, lock) });
            }
            Kind::Confirm { key, locks, to } => {
                self.prove(valid_until);
                self.effects.push(Effect::Granted { to, key, locks });
            }
            Kind::Verify { key, to } => self.verified(key, ok, head, to),
            Kind::Release { names, to } => {
                self.free(&names);
                let answer = if ok { Ok(text.to_vec()) } else { Err(refused_release(&names, head)) };
                self.effects.extend(to.map(|to| Effect::Answered { to, answer }));
            }
            Kind::Bye { to } => {
                self.answer(to, Ok(text.to_vec()));
                self.end(&Disconnected::Bye);
            }
            Kind::Ask { to } => {
                let answer = if ok { Ok(text.to_vec()) } else { Err(NoAnswer::Refused(head.refusal())) };
                self.answer(to, answer);
            }
        }
    }

    /// A heartbeat's answer tells until when the storage keeps what is held: later than was known before, if at all.
    fn prove(&mut self, valid_until: Option<BootTime>) {
        for held in self.held.values_mut() {
            held.proven_until = held.proven_until.max(valid_until);
        }
    }

    fn free(&mut self, names: &[LockName]) {
        for name in names {
            self.names.remove(name);
        }
        self.effects.push(Effect::Freed);
    }

    /// A grant: from here on it counts as held, also before anybody has it. Where the storage has a deadline, that of a grant
    /// which was long waited for is told from a moment long ago; one heartbeat more tells a fresh one.
    fn granted(
        &mut self,
        now: BootTime,
        names: &[LockName],
        (waits, valid_until): (bool, Option<BootTime>),
        to: Offer,
        text: &[u8],
    ) {
        let locks = match message::granted(text, names) {
            Ok(_) if self.leaving => {
                let error = AcquireError::Disconnected(Disconnected::Bye);
                return self.effects.push(Effect::NotGranted { to, error });
            }
            Ok(locks) => locks,
            Err(what) => {
                let error = AcquireError::Disconnected(Disconnected::Garbage { what: what.clone() });
                self.effects.push(Effect::NotGranted { to, error });
                return self.garbage(what);
            }
        };
        self.last += 1;
        let key = self.last;
        let confirm = waits && valid_until.is_some();
        let proven_until = valid_until.filter(|_| !confirm);
        let (names, suspects) = (names.to_vec(), BTreeMap::new());
        self.held.insert(key, Held { names, proven_until, suspects, standing: watch::Sender::new(Standing::Held) });
        if confirm {
            self.ping(now, Kind::Confirm { key, locks, to });
        } else {
            self.effects.push(Effect::Granted { to, key, locks });
        }
        self.check(now);
    }

    fn verified(&mut self, key: u64, ok: bool, head: &Head, to: oneshot::Sender<Answer>) {
        if ok {
            return self.answer(to, Ok(Vec::new()));
        }
        let refusal = head.refusal();
        let gone = matches!(refusal.word.as_str(), "lost" | "not_held");
        match self.held.get_mut(&key).filter(|_| gone) {
            Some(held) => {
                let lock = refusal.lock.clone().or_else(|| held.names.first().cloned());
                if let Some(lock) = lock {
                    held.lose(Lost::Told { lock, reason: refusal.message });
                }
                let lost = self.lost(key);
                self.answer(to, Err(NoAnswer::Lost(lost)));
            }
            None => self.answer(to, Err(NoAnswer::Refused(refusal))),
        }
    }
}

/// What a refused release means: if the lock was not held any more, it was lost before.
fn refused_release(names: &[LockName], head: &Head) -> NoAnswer {
    let refusal = head.refusal();
    match (refusal.word.as_str(), refusal.lock.as_ref().or_else(|| names.first())) {
        ("not_held" | "lost", Some(lock)) => {
            NoAnswer::Lost(Lost::Told { lock: lock.clone(), reason: refusal.message.clone() })
        }
        _ => NoAnswer::Refused(refusal),
    }
}
