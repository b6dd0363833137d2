//! A session as its client knows it: what was requested, what is held, and until when. It decides
//! without a socket and without a clock: time is an argument, bytes go into an outbox, and results
//! leave as effects, which are carried out once nothing is locked.
//!
//! The deadline (docs/decisions/0013): the daemon gives a silent client up, and grants its locks to
//! others. So the client counts from when the last answered request was *sent*, since the daemon
//! cannot have received it earlier, and stops before the daemon gives it up.

mod held;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::boottime::BootTime;
use crate::error::{AcquireError, DisconnectedError, LostError, RequestError};
use crate::grant::{GrantGuard, HeldLock};
use crate::timing::Timing;
use crate::wanted::Asked;
use distrilock_protocol::limits::FRAME_BYTES_MAX;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Id, Op, RequestObject};
use held::HeldGrant;
pub use held::Standing;

/// How a request other than an acquire ends: with the bytes of the reply, or an error.
pub(crate) type ReplyResult = Result<Vec<u8>, RequestError>;

/// Where a grant goes.
pub(crate) type GrantSender = oneshot::Sender<Result<GrantGuard, AcquireError>>;

/// What has to be done once the session is not locked: what is sent may be dropped at once, and
/// come back as a release.
#[derive(Debug)]
pub(crate) enum Effect {
    Granted {
        to: GrantSender,
        key: u64,
        locks: Vec<HeldLock>,
    },
    NotGranted {
        to: GrantSender,
        error: AcquireError,
    },
    Replied {
        to: oneshot::Sender<ReplyResult>,
        reply: ReplyResult,
    },
    /// A name can be requested again.
    Freed,
}

/// A request that has not been answered yet.
#[derive(Debug)]
struct Pending {
    sent: BootTime,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A heartbeat.
    Ping,
    /// Its answer is not needed.
    Cancel,
    Acquire {
        asked: Asked,
        to: GrantSender,
    },
    /// A heartbeat between a grant and its delivery: see `granted`.
    Confirm {
        key: u64,
        locks: Vec<HeldLock>,
        to: GrantSender,
    },
    Verify {
        key: u64,
        to: oneshot::Sender<ReplyResult>,
    },
    Release {
        names: Vec<LockName>,
        to: Option<oneshot::Sender<ReplyResult>>,
    },
    Bye {
        to: oneshot::Sender<ReplyResult>,
    },
    Ask {
        to: oneshot::Sender<ReplyResult>,
    },
}

/// What a session does with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It is being acquired, or held.
    Taken,
    /// It is being released, or its acquire was abandoned. It can be requested again soon.
    Leaving,
}

/// Why an acquire cannot start now.
#[derive(Debug)]
pub(crate) enum StartError {
    /// A name is still being released: wait for [`Effect::Freed`].
    Leaving,
    Refused(AcquireError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClientSession {
    timing: Timing,
    last: u64,
    pending: HashMap<u64, Pending>,
    held: HashMap<u64, HeldGrant>,
    names: HashMap<LockName, Use>,
    /// Lines to be sent.
    pub(crate) outbox: Vec<u8>,
    /// When the last answered request was sent, or when the session stopped being idle.
    proof: BootTime,
    /// Whether a heartbeat waits for its answer.
    pinging: bool,
    next_ping: BootTime,
    /// Whether bye has been sent. The daemon releases what it grants after that.
    leaving: bool,
    ended: Option<DisconnectedError>,
    pub(crate) effects: Vec<Effect>,
}

impl ClientSession {
    pub(crate) fn new(timing: Timing, now: BootTime) -> Self {
        Self {
            timing,
            last: 0,
            pending: HashMap::new(),
            held: HashMap::new(),
            names: HashMap::new(),
            outbox: Vec::new(),
            proof: now,
            pinging: false,
            next_ping: now,
            leaving: false,
            ended: None,
            effects: Vec::new(),
        }
    }

    pub(crate) fn ended(&self) -> Option<&DisconnectedError> {
        self.ended.as_ref()
    }

    /// Sets the times, once the daemon has said how long it tolerates silence.
    pub(crate) fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// How long the program may take to stop.
    pub(crate) fn stop_within(&self) -> Duration {
        self.timing.stop_within()
    }

    /// Why nothing new can be requested; None if something can.
    fn unusable(&self) -> Option<DisconnectedError> {
        self.ended.clone().or_else(|| self.leaving.then_some(DisconnectedError::Bye))
    }

    fn is_busy(&self) -> bool {
        !self.pending.is_empty() || !self.held.is_empty()
    }

    fn deadline(&self) -> BootTime {
        self.proof + self.timing.silence_max
    }

    /// When `tick` has something to do.
    pub(crate) fn next_tick(&self) -> Option<BootTime> {
        if !self.is_busy() || self.ended.is_some() {
            return None;
        }
        let ping = (!self.pinging).then_some(self.next_ping);
        let standing = self.held.values().filter(|held| !held.is_lost()).filter_map(HeldGrant::until);
        standing.chain(ping).chain([self.deadline()]).min()
    }

    /// Ends what is over. Everything that looks at the session or changes it calls this first. So
    /// nothing counts as held after its deadline, even if the task that drives the connection has
    /// not run.
    pub(crate) fn check(&mut self, now: BootTime) {
        if self.ended.is_none() && self.is_busy() && now >= self.deadline() {
            self.end(&DisconnectedError::Silent { silence: self.timing.silence_max });
        }
        for held in self.held.values() {
            if held.until().is_some_and(|until| now >= until) {
                held.lose(LostError::Unproven);
            }
        }
    }

    /// Sends the heartbeat that is due. An idle session needs none: it has nothing to lose.
    pub(crate) fn tick(&mut self, now: BootTime) {
        if self.ended.is_none() && self.is_busy() && !self.pinging && now >= self.next_ping {
            self.ping(now, Kind::Ping);
            self.pinging = true;
            self.next_ping = now + self.timing.heartbeat;
        }
    }

    /// For how long everything held is certain to stay so. Locks that are lost or need no
    /// confirmation do not count.
    fn certain(&self, now: BootTime) -> Duration {
        let held = self.held.values().filter(|held| !held.is_lost()).filter_map(HeldGrant::until);
        held.min().map_or(Duration::MAX, |until| until.saturating_since(now))
    }

    /// Makes the next heartbeat come in time: the storage has just confirmed what is held.
    fn hasten(&mut self, now: BootTime) {
        self.next_ping = self.next_ping.min(now + self.timing.heartbeat_within(self.certain(now)));
    }

    fn ping(&mut self, now: BootTime, kind: Kind) {
        self.send(now, &RequestObject::from(&Op::Ping), kind);
    }

    /// Ends the session: its locks are lost, and its requests fail.
    pub(crate) fn end(&mut self, why: &DisconnectedError) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why.clone());
        self.held.values().for_each(|held| held.lose(LostError::Disconnected(why.clone())));
        for (_, Pending { kind, .. }) in std::mem::take(&mut self.pending) {
            match kind {
                Kind::Ping | Kind::Cancel => {}
                Kind::Acquire { to, .. } | Kind::Confirm { to, .. } => {
                    self.effects.push(Effect::NotGranted { to, error: AcquireError::Disconnected(why.clone()) });
                }
                Kind::Bye { to } if matches!(why, DisconnectedError::Closed | DisconnectedError::Bye) => {
                    // What bye asks for has happened.
                    self.effects.push(Effect::Replied { to, reply: Ok(Vec::new()) });
                }
                Kind::Verify { to, .. } | Kind::Release { to: Some(to), .. } | Kind::Bye { to } | Kind::Ask { to } => {
                    self.effects.push(Effect::Replied { to, reply: Err(RequestError::Disconnected(why.clone())) });
                }
                Kind::Release { to: None, .. } => {}
            }
        }
        self.names.clear();
        self.outbox.clear();
        self.effects.push(Effect::Freed);
    }

    /// Writes a request. The caller has checked its length.
    fn send(&mut self, now: BootTime, request: &RequestObject<'_>, kind: Kind) -> u64 {
        if !self.is_busy() {
            // Nothing was at stake, so no heartbeat was sent. From now on, something is.
            self.proof = now;
            self.next_ping = now + self.timing.heartbeat;
        }
        self.last += 1;
        let id = self.last;
        self.outbox.extend_from_slice(&request.line(id));
        self.pending.insert(id, Pending { sent: now, kind });
        id
    }

    /// Asks something that the session keeps no account of.
    pub(crate) fn ask(&mut self, now: BootTime, request: &RequestObject<'_>) -> oneshot::Receiver<ReplyResult> {
        let (to, answer) = oneshot::channel();
        let bytes = request.line(u64::MAX).len();
        match self.unusable() {
            Some(why) => self.reply_to(to, Err(RequestError::Disconnected(why))),
            None if bytes > FRAME_BYTES_MAX => self.reply_to(to, Err(RequestError::TooLong { bytes })),
            None => drop(self.send(now, request, Kind::Ask { to })),
        }
        answer
    }

    fn reply_to(&mut self, to: oneshot::Sender<ReplyResult>, reply: ReplyResult) {
        self.effects.push(Effect::Replied { to, reply });
    }

    /// Sends an acquire; its answer comes through `to`.
    ///
    /// # Errors
    /// If the session has ended or already uses one of the names, or the program could not stop in
    /// time.
    pub(crate) fn acquire(&mut self, now: BootTime, asked: &Asked, to: GrantSender) -> Result<u64, StartError> {
        if let Some(why) = self.unusable() {
            return Err(StartError::Refused(AcquireError::Disconnected(why)));
        }
        if let Some(slow) = self.timing.too_slow {
            return Err(StartError::Refused(slow.into()));
        }
        let names = asked.names();
        let taken = names.iter().find(|name| self.names.get(*name) == Some(&Use::Taken));
        if let Some(lock) = taken {
            return Err(StartError::Refused(AcquireError::AlreadyHeld { lock: lock.clone() }));
        }
        if names.iter().any(|name| self.names.contains_key(name)) {
            return Err(StartError::Leaving);
        }
        self.names.extend(names.iter().map(|name| (name.clone(), Use::Taken)));
        let kind = Kind::Acquire { asked: asked.clone(), to };
        Ok(self.send(now, &asked.request(), kind))
    }

    /// Abandons an acquire. A grant that is on its way has no receiver any more, and is released.
    pub(crate) fn abandon(&mut self, now: BootTime, id: u64) {
        let Some(Pending { kind: Kind::Acquire { asked, .. }, .. }) = self.pending.get(&id) else { return };
        for name in asked.names() {
            self.names.insert(name, Use::Leaving);
        }
        if asked.waits() {
            self.send(now, &RequestObject::from(&Op::Cancel(Id::Number(id))), Kind::Cancel);
        }
    }

    /// Releases what was granted under `key`. Without `to`, nobody waits for the answer.
    pub(crate) fn release(&mut self, now: BootTime, key: u64, to: Option<oneshot::Sender<ReplyResult>>) {
        let Some(held) = self.held.get(&key) else { return };
        let lost = match &*held.standing.borrow() {
            Standing::Lost(lost) => Some(lost.clone()),
            Standing::Held | Standing::Suspect(_) => None,
        };
        let names = held.names.clone();
        let to = match (to, lost) {
            (Some(to), Some(lost)) => {
                self.reply_to(to, Err(RequestError::Lost(lost)));
                None
            }
            (to, _) => to,
        };
        if self.ended.is_none() && !names.is_empty() {
            self.send_release(now, &names, to);
        } else if let Some(to) = to {
            self.reply_to(to, Ok(Vec::new()));
        }
        self.held.remove(&key);
    }

    fn send_release(&mut self, now: BootTime, names: &[LockName], to: Option<oneshot::Sender<ReplyResult>>) {
        self.names.extend(names.iter().map(|name| (name.clone(), Use::Leaving)));
        let op = match names {
            [lock] => Op::Release(lock.clone()),
            locks => Op::ReleaseAll(locks.to_vec()),
        };
        let request = RequestObject::from(&op);
        debug_assert!(request.line(0).len() < FRAME_BYTES_MAX, "a release names no more locks than an acquire did");
        self.send(now, &request, Kind::Release { names: names.to_vec(), to });
    }

    /// Asks whether everything that was granted under `key` is still real, name by name. Each
    /// answer comes through its own receiver.
    pub(crate) fn verify(&mut self, now: BootTime, key: u64) -> Result<Vec<oneshot::Receiver<ReplyResult>>, LostError> {
        let names = match self.held.get(&key) {
            Some(held) if !held.is_lost() => held.names.clone(),
            _ => return Err(self.lost(key)),
        };
        let ask = |name: &LockName| {
            let (to, answer) = oneshot::channel();
            self.send(now, &RequestObject::from(&Op::Verify(name.clone())), Kind::Verify { key, to });
            answer
        };
        Ok(names.iter().map(ask).collect())
    }

    fn lost(&self, key: u64) -> LostError {
        let standing = self.held.get(&key).map(|held| held.standing.borrow().clone());
        match (standing, &self.ended) {
            (Some(Standing::Lost(lost)), _) => lost,
            (_, Some(why)) => LostError::Disconnected(why.clone()),
            _ => LostError::Disconnected(DisconnectedError::Dropped),
        }
    }

    /// Says goodbye. Everything is as good as released once this is sent, so nothing counts as held
    /// any more.
    pub(crate) fn bye(&mut self, now: BootTime) -> oneshot::Receiver<ReplyResult> {
        let (to, answer) = oneshot::channel();
        if let Some(why) = self.unusable() {
            self.reply_to(to, Err(RequestError::Disconnected(why)));
        } else {
            self.leaving = true;
            self.held.values().for_each(|held| held.lose(LostError::Disconnected(DisconnectedError::Bye)));
            self.send(now, &RequestObject::from(&Op::Bye), Kind::Bye { to });
        }
        answer
    }

    /// Watches what was granted under `key`.
    pub(crate) fn watch(&self, key: u64) -> Option<watch::Receiver<Standing>> {
        self.held.get(&key).map(|held| held.standing.subscribe())
    }

    /// Until when what was granted under `key` is certain to be held, if nothing more is heard.
    pub(crate) fn valid_until(&self, key: u64) -> Option<BootTime> {
        let held = self.held.get(&key).filter(|held| !held.is_lost())?;
        Some(held.until().map_or(self.deadline(), |until| until.min(self.deadline())))
    }
}
