//! [`History`]: who held which lock, from when to when, as events of the log (decision 25). The
//! engine picks what took long enough to be told; `distrilock history` reads it from the journal.

use std::fmt;

use super::mailbox::{Identity, Mailboxes};
use super::throttle::Throttle;
use crate::limits::HISTORY_PER_MINUTE_MAX;
use crate::systemd::ids;
use crate::systemd::journal::HISTORY_TARGET;
use distrilock_engine::{HoldEnd, Mode, Past, SessionId, WaitEnd};
use distrilock_protocol::name::LockName;

/// Logs the history, each kind of event within a budget of its own, so that none hides another.
#[derive(Debug)]
pub(crate) struct History {
    granted: Throttle,
    ended: Throttle,
    gave_up: Throttle,
    sessions: Throttle,
}

impl Default for History {
    fn default() -> Self {
        let budget = || Throttle::new(HISTORY_PER_MINUTE_MAX);
        Self { granted: budget(), ended: budget(), gave_up: budget(), sessions: budget() }
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    pub(super) name: &'a LockName,
    pub(super) session: SessionId,
    pub(super) mode: Mode,
    /// Where the session's identity is, for an event that is logged.
    pub(super) mailboxes: &'a Mailboxes,
}

impl History {
    pub(super) fn log(&self, moment: &Moment<'_>, past: Past) {
        let Moment { name, session, mode, mailboxes } = *moment;
        let throttle = match past {
            Past::Granted { .. } => &self.granted,
            Past::Ended { .. } => &self.ended,
            Past::GaveUp { .. } => &self.gave_up,
        };
        let Some(missed) = throttle.pass() else { return };
        gap(missed);
        let identity = mailboxes.identity(session);
        let peer = identity.peer.as_deref().unwrap_or_default();
        let (holder, mode) = (&Who(&identity), &ModeText(mode));
        match past {
            Past::Granted { waited_ms } => tracing::info!(
                target: HISTORY_TARGET,
                MESSAGE_ID = ids::LOCK_GRANTED, LOCK = %name, SESSION = %session, HOLDER = %holder, PEER = peer,
                MODE = %mode, WAITED_MS = waited_ms,
                "session {session} ({holder}) was granted the lock {name} after {waited_ms} ms"
            ),
            Past::Ended { held_ms, waited_ms, end } => {
                let ended = &EndText(end);
                tracing::info!(
                    target: HISTORY_TARGET,
                    MESSAGE_ID = ids::LOCK_ENDED, LOCK = %name, SESSION = %session, HOLDER = %holder, PEER = peer,
                    MODE = %mode, HELD_MS = held_ms, WAITED_MS = waited_ms, ENDED = %ended,
                    "session {session} ({holder}) held the lock {name} for {held_ms} ms: {ended}"
                );
            }
            Past::GaveUp { waited_ms, why } => {
                let ended = match why {
                    WaitEnd::TimedOut => "timed out",
                    WaitEnd::Cancelled => "cancelled",
                    WaitEnd::Deadlock => "deadlock",
                    WaitEnd::SessionEnded => "session ended",
                };
                tracing::info!(
                    target: HISTORY_TARGET,
                    MESSAGE_ID = ids::WAIT_ENDED, LOCK = %name, SESSION = %session, HOLDER = %holder, PEER = peer,
                    MODE = %mode, WAITED_MS = waited_ms, ENDED = ended,
                    "session {session} ({holder}) waited {waited_ms} ms for the lock {name}, in vain: {ended}"
                );
            }
        }
    }

    /// A session has ended, which is told only with `--audit all`.
    pub(crate) fn session_ended(
        &self,
        session: SessionId,
        identity: &Identity,
        dialect: &'static str,
        why: &dyn fmt::Display,
    ) {
        let Some(missed) = self.sessions.pass() else { return };
        gap(missed);
        let peer = identity.peer.as_deref().unwrap_or_default();
        let holder = &Who(identity);
        tracing::info!(
            target: HISTORY_TARGET,
            MESSAGE_ID = ids::SESSION_ENDED, SESSION = %session, HOLDER = %holder, PEER = peer, DIALECT = dialect,
            ENDED = %why, "session {session} ({holder}) ended: {why}"
        );
    }

    /// Logs how many events were held back in minutes that are over, if no event follows.
    pub(crate) fn summarise(&self) {
        for throttle in [&self.granted, &self.ended, &self.gave_up, &self.sessions] {
            gap(throttle.summary().unwrap_or(0));
        }
    }
}

/// So many events are missing here.
fn gap(missed: u64) {
    if missed > 0 {
        tracing::info!(
            target: HISTORY_TARGET, MESSAGE_ID = ids::HISTORY_GAP, MISSED = missed,
            "{missed} events of the history were not logged, since there were too many"
        );
    }
}

/// A session's name and what else it says of itself; where it connected from if it says nothing.
struct Who<'a>(&'a Identity);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { introduction, peer } = self.0;
        let peer = peer.as_deref().unwrap_or("unknown");
        let Some(said) = introduction else { return f.write_str(peer) };
        match (&said.name, &said.user, &said.host) {
            (Some(name), ..) => f.write_str(name)?,
            (None, Some(user), Some(host)) => write!(f, "{user}@{host}")?,
            (None, Some(one), None) | (None, None, Some(one)) => f.write_str(one)?,
            (None, None, None) => f.write_str(peer)?,
        }
        let pid = said.pid.map(|pid| format!("pid {pid}"));
        for detail in [pid.as_ref(), said.command.as_ref(), said.note.as_ref()].into_iter().flatten() {
            write!(f, ", {detail}")?;
        }
        Ok(())
    }
}

struct ModeText(Mode);

impl fmt::Display for ModeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Mode::Exclusive => f.write_str("exclusive"),
            Mode::Shared => f.write_str("shared"),
            Mode::Slots(of) => write!(f, "slots of {of}"),
        }
    }
}

struct EndText(HoldEnd);

impl fmt::Display for EndText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            HoldEnd::Released => f.write_str("released"),
            HoldEnd::SessionEnded => f.write_str("session ended"),
            HoldEnd::Lost(reason) => write!(f, "lost: {reason}"),
        }
    }
}
