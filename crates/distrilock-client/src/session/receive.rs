//! Messages of the daemon, and what they mean for the session.

use std::collections::BTreeMap;

use tokio::sync::{oneshot, watch};

use super::held::{HeldGrant, Standing};
use super::{ClientSession, Effect, GrantSender, Kind, Pending, ReplyResult};
use crate::boottime::BootTime;
use crate::error::{AcquireError, DisconnectedError, Excerpt, LostError, Refused, RequestError, shown};
use crate::grant;
use crate::wanted::Asked;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{ErrorWord, Event, Head, Id, Refusal};

/// What a reply says: yes, with these bytes, or no.
type Verdict<'a> = Result<&'a [u8], Refused>;

impl ClientSession {
    /// Takes a message of the daemon.
    pub(crate) fn receive(&mut self, now: BootTime, text: &[u8]) {
        if self.ended.is_some() {
            return;
        }
        if let Err(error) = self.understand(now, text) {
            self.garbage(format!("{error}: {}", Excerpt(text)));
        }
    }

    fn understand(&mut self, now: BootTime, text: &[u8]) -> Result<(), serde_json::Error> {
        let refusal = || serde_json::from_slice::<Refusal<'_>>(text).map(Refused::from);
        let head: Head = serde_json::from_slice(text)?;
        match (head.event, head.id, head.ok) {
            (Some(_), None, None) => self.event(now, &serde_json::from_slice(text)?),
            (None, Some(id), Some(ok)) => {
                let verdict = if ok { Ok(text) } else { Err(refusal()?) };
                let pending = if let Id::Number(id) = id { self.pending.remove(&id) } else { None };
                match pending {
                    Some(pending) => self.reply(now, pending, verdict, head.valid_ms),
                    None => self.garbage(format!("a reply to no request: {}", Excerpt(text))),
                }
            }
            // The daemon's last words.
            (None, None, Some(false)) => {
                let Refused { word, message, .. } = refusal()?;
                self.end(&DisconnectedError::Told { word, message });
            }
            _ => self.garbage(format!("neither reply nor event: {}", Excerpt(text))),
        }
        Ok(())
    }

    /// After one message that is not understood, none of the others can be relied on.
    fn garbage(&mut self, what: String) {
        self.end(&DisconnectedError::Garbage { what });
    }

    fn event(&mut self, now: BootTime, event: &Event<'_>) {
        let (Event::Lost { lock, .. } | Event::Suspect { lock, .. } | Event::Held { lock }) = event else { return };
        let Ok(lock) = LockName::parse(lock.as_bytes()) else { return };
        let timing = self.timing;
        for held in self.held.values_mut().filter(|held| held.names.contains(&lock)) {
            match event {
                Event::Lost { reason, .. } => {
                    let reason = reason.as_deref().map_or_else(|| "the daemon gives no reason".into(), shown);
                    held.names.retain(|name| *name != lock);
                    self.names.remove(&lock);
                    held.lose(LostError::Told { lock: lock.clone(), reason });
                }
                Event::Suspect { valid_ms, .. } => {
                    held.suspects.insert(lock.clone(), now + timing.valid(*valid_ms));
                    held.update_standing();
                }
                Event::Held { .. } => {
                    held.suspects.remove(&lock);
                    held.update_standing();
                }
                Event::Unknown => {}
            }
        }
        self.check(now);
    }

    fn reply(&mut self, now: BootTime, pending: Pending, verdict: Verdict<'_>, valid_ms: Option<u64>) {
        let Pending { sent, kind } = pending;
        self.proof = self.proof.max(sent);
        let valid_until = valid_ms.map(|valid_ms| sent + self.timing.valid(valid_ms));
        match kind {
            Kind::Ping => {
                self.pinging = false;
                self.prove(now, valid_until);
            }
            Kind::Cancel => {}
            Kind::Acquire { asked, to } => match verdict {
                Ok(text) => self.granted(now, &asked, valid_until, to, text),
                Err(refused) => {
                    self.free(&asked.names());
                    self.effects.push(Effect::NotGranted { to, error: AcquireError::refused(refused) });
                }
            },
            Kind::Confirm { key, locks, to } => {
                self.prove(now, valid_until);
                self.effects.push(Effect::Granted { to, key, locks });
            }
            Kind::Verify { key, to } => self.verified(key, verdict, to),
            Kind::Release { names, to } => {
                self.free(&names);
                let reply = verdict.map(<[u8]>::to_vec).map_err(|refused| refused_release(&names, refused));
                self.effects.extend(to.map(|to| Effect::Replied { to, reply }));
            }
            Kind::Bye { to } => {
                self.reply_to(to, Ok(Vec::new()));
                self.end(&DisconnectedError::Bye);
            }
            Kind::Ask { to } => self.reply_to(to, verdict.map(<[u8]>::to_vec).map_err(RequestError::from)),
        }
    }

    /// A heartbeat's answer says until when the storage keeps what is held. That can only be later
    /// than what was known.
    fn prove(&mut self, now: BootTime, valid_until: Option<BootTime>) {
        for held in self.held.values_mut() {
            held.proven_until = held.proven_until.max(valid_until);
        }
        self.hasten(now);
    }

    fn free(&mut self, names: &[LockName]) {
        for name in names {
            self.names.remove(name);
        }
        self.effects.push(Effect::Freed);
    }

    /// Takes a grant. From here on it counts as held, even before it is delivered. If the storage
    /// has a deadline, that of a grant after a long wait counts from when the request was sent,
    /// long ago. One more heartbeat renews it.
    fn granted(&mut self, now: BootTime, asked: &Asked, valid_until: Option<BootTime>, to: GrantSender, text: &[u8]) {
        let locks = match grant::read(text, asked) {
            Ok(_) if self.leaving => {
                let error = AcquireError::Disconnected(DisconnectedError::Bye);
                return self.effects.push(Effect::NotGranted { to, error });
            }
            Ok(locks) => locks,
            Err(what) => {
                let error = AcquireError::Disconnected(DisconnectedError::Garbage { what: what.clone() });
                self.effects.push(Effect::NotGranted { to, error });
                return self.garbage(what);
            }
        };
        self.last += 1;
        let key = self.last;
        let confirm = asked.waits() && valid_until.is_some();
        let proven_until = valid_until.filter(|_| !confirm);
        let (names, suspects) = (asked.names(), BTreeMap::new());
        self.held
            .insert(key, HeldGrant { names, proven_until, suspects, standing: watch::Sender::new(Standing::Held) });
        if confirm {
            self.ping(now, Kind::Confirm { key, locks, to });
        } else {
            self.effects.push(Effect::Granted { to, key, locks });
        }
        self.hasten(now);
        self.check(now);
    }

    fn verified(&mut self, key: u64, verdict: Verdict<'_>, to: oneshot::Sender<ReplyResult>) {
        let Err(refused) = verdict else { return self.reply_to(to, Ok(Vec::new())) };
        match self.held.get_mut(&key).filter(|_| is_gone(&refused)) {
            Some(held) => {
                let lock = refused.lock.or_else(|| held.names.first().cloned());
                if let Some(lock) = lock {
                    held.lose(LostError::Told { lock, reason: refused.message });
                }
                let lost = self.lost(key);
                self.reply_to(to, Err(lost.into()));
            }
            None => self.reply_to(to, Err(refused.into())),
        }
    }
}

/// Whether the daemon says that the session does not hold the lock.
fn is_gone(refused: &Refused) -> bool {
    matches!(refused.word, ErrorWord::Lost | ErrorWord::NotHeld)
}

/// What a refused release means: if the lock was not held any more, it was lost before.
fn refused_release(names: &[LockName], refused: Refused) -> RequestError {
    match refused.lock.as_ref().or_else(|| names.first()) {
        Some(lock) if is_gone(&refused) => LostError::Told { lock: lock.clone(), reason: refused.message }.into(),
        _ => refused.into(),
    }
}
