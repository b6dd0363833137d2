//! What goes into the engine and what comes out of it.

use distrilock_protocol::ids::{RequestId, SessionId};
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::{Mode, Want};

use crate::claim::{Claim, View};
use crate::fault::Fault;

/// A request about a name: who asks, and about which name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The name.
    pub name: LockName,
    /// The session.
    pub session: SessionId,
    /// Its request.
    pub request: RequestId,
}

impl Asked {
    pub(crate) fn asker(&self) -> Asker {
        Asker { session: self.session, request: self.request }
    }
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asker {
    pub(crate) session: SessionId,
    pub(crate) request: RequestId,
}

/// What the engine takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input<F> {
    /// A session wants a name.
    Acquire {
        /// Who, and which name.
        asked: Asked,
        /// How much of it.
        want: Want,
        /// Whether the request queues if it cannot be granted at once.
        wait: bool,
    },
    /// A session gives a name back.
    Release(Asked),
    /// A session gives a name back, and wants to know whether somebody deleted the file in the
    /// meantime.
    ReleaseAndLook(Asked),
    /// A session asks whether its lock is real.
    Verify(Asked),
    /// A session asks for the stamp of a name that it holds, or writes it.
    Stamp {
        /// Who, and which name.
        asked: Asked,
        /// How old the stamp is to be, in milliseconds; `None`: only read it.
        age_ms: Option<u32>,
    },
    /// A session asks who holds a name.
    Peek(Asked),
    /// A waiting request ends without a grant; no effect if it does not wait (any more).
    Withdraw {
        /// The waiting request.
        asked: Asked,
        /// Why it ends.
        why: Withdrawal,
    },
    /// A session has ended: everything it holds, waits for or asks about this name goes,
    /// unanswered.
    Leave {
        /// The name.
        name: LockName,
        /// The session that ended.
        session: SessionId,
    },
    /// The file operation of a name is complete.
    Done {
        /// The name.
        name: LockName,
        /// The file, if it is still open.
        file: Option<F>,
        /// What came of it.
        outcome: Outcome,
    },
    /// The file operation of a name does not come back in time: every request that waits for it is
    /// refused with this fault. The operation is still under way, and completes some day.
    Stalled {
        /// The name.
        name: LockName,
        /// The answer to the requests that wait for it.
        fault: Fault,
    },
    /// Find out whether the lock on a name is real, although nobody asks; no effect if nobody holds
    /// it.
    Probe(LockName),
    /// The storage is silent: tell every holder that its lock is certain for only this many more
    /// milliseconds.
    Suspect(u64),
    /// The storage answers again: tell every holder that its lock is held.
    Trust,
    /// The storage was silent for too long: every lock counts as lost.
    Silence(&'static str),
    /// A timer that was armed has run out. A late or repeated one is a no-op.
    Elapsed(Timer),
    /// Another daemon says that it has released a name. That is not believed: if somebody waits for
    /// the name, it is tried.
    Hint(LockName),
    /// Another daemon says that it holds a name, and that it will send word when it releases it:
    /// until then the name is tried rarely, at [`Timer::Recheck`].
    Promised(LockName),
    /// A daemon that may have promised word is gone: the names that were promised are tried.
    PromisesBroken,
    /// What the clock shows, in milliseconds; copied into [`Claim`]s.
    Now(u64),
    /// Descriptors are short: the file that has been idle longest goes.
    Shed,
    /// The daemon stops: waiting requests are refused, nothing is granted any more, idle files go,
    /// and the others go as soon as they are released.
    Drain,
}

/// Why a waiting request ends without a grant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Withdrawal {
    /// Its session asked for it.
    Cancelled,
    /// Its time ran out.
    TimedOut,
    /// It waits for sessions that wait for its own; the text says which.
    Deadlock(Box<str>),
}

impl From<Withdrawal> for Answer {
    fn from(why: Withdrawal) -> Self {
        match why {
            Withdrawal::Cancelled => Self::Cancelled,
            Withdrawal::TimedOut => Self::TimedOut,
            Withdrawal::Deadlock(cycle) => Self::Deadlock(cycle),
        }
    }
}

/// An operation on a lock file; [`steps`](crate::steps) has the calls that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileOp {
    /// Lock the file that the name means now, in this mode. The given file may be locked already,
    /// and there may be none.
    Try(Mode),
    /// Try again, only for requests that wait: a refusal answers nobody, and is not checked a
    /// second time.
    Retry(Mode),
    /// A try that also takes a fence.
    TryFence(Mode),
    /// Take slots of the file that the name means now. If it `joins`, the file has slots of
    /// sessions already, and keeps them; otherwise any lock that the given file has is released
    /// first.
    Take {
        /// How many slots there are.
        of: u16,
        /// How many of them to take.
        take: u16,
        /// Whether sessions hold slots through the file.
        joins: bool,
        /// Whether to take a fence as well.
        fence: bool,
    },
    /// Give slots back; the file keeps others.
    Give {
        /// How many slots there are.
        of: u16,
        /// The first one to give back.
        first: u16,
        /// How many to give back.
        count: u16,
    },
    /// Find out whether the lock that the file has in this mode is real.
    Probe(Mode),
    /// A probe that also takes a fence, if the lock is real.
    ProbeFence(Mode),
    /// A probe that also reads the stamp of the name, or gives it this age in milliseconds, if the
    /// lock is real.
    Stamp(Mode, Option<u32>),
    /// Unlock the file and keep it open.
    Unlock,
    /// The same, and find out whether somebody had deleted it.
    UnlockAndLook,
    /// Remove the file if nobody else locks it; unlock and close it.
    Retire,
    /// Find out whether another process locks the file; take no lock.
    Peek,
}

impl FileOp {
    /// Whether it takes a fence, and therefore waits for the disk and for other processes that take
    /// one; or opens the file of a stamp.
    #[must_use]
    pub fn may_wait(self) -> bool {
        matches!(self, Self::TryFence(_) | Self::ProbeFence(_) | Self::Take { fence: true, .. } | Self::Stamp(..))
    }
}

/// What came of a file operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Try: the name's file is locked in the requested mode.
    Locked,
    /// Try: another process holds the name; the given file is unlocked.
    Refused,
    /// Try: nobody holds the name, but a process that is about to delete the file is in the way;
    /// the given file is unlocked.
    Disturbed,
    /// Try or probe with a fence: locked, or real; and the fence, or why there is none.
    Fenced(Result<u64, Fault>),
    /// Stamp: the lock is real; and how old the stamp is in milliseconds, if there is one, or why
    /// that is unknown.
    Stamped(Result<Option<u64>, Fault>),
    /// Take: these slots are locked; and the fence, or why there is none.
    Taken {
        /// As many as were asked for.
        slots: Box<[u16]>,
        /// The fence, if one was asked for.
        fence: Option<Result<u64, Fault>>,
    },
    /// Try, take: another process has the name in a mode that does not go with this one. If the
    /// take joined, the file has what it had before; otherwise it has no lock.
    Disagrees(Mode),
    /// Give: the slots are free.
    Given,
    /// Probe: the lock is real.
    Real,
    /// Probe, or a take that joins: the lock is gone, or no longer protects anything.
    Lost(&'static str),
    /// Unlock, Retire: the daemon has no lock on the file any more.
    Unlocked {
        /// Whether somebody had removed it while it was locked.
        file_gone: bool,
    },
    /// Peek: whether another process locks the file.
    Peeked {
        /// Whether it does.
        locked: bool,
    },
    /// The system failed the operation; a try leaves no lock behind.
    Failed(Fault),
}

/// A timer of the engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Contended names are due for another try.
    Retry,
    /// Contended names of which another daemon promised word are due for another try.
    Recheck,
    /// Idle files grow older.
    Linger,
    /// The daemon's turn with this name ends, or it has left the name alone for long enough.
    Turn(LockName),
}

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect<F> {
    /// Carry out a file operation; it completes with [`Input::Done`].
    File {
        /// The name.
        name: LockName,
        /// The operation.
        op: FileOp,
        /// The name's open file, if there is one.
        file: Option<F>,
    },
    /// Answer a request.
    Answer {
        /// The name that it was about.
        name: LockName,
        /// The session that asked.
        session: SessionId,
        /// Its request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// Tell a session that it has lost a lock.
    Lost {
        /// The name.
        name: LockName,
        /// The session that held it.
        session: SessionId,
        /// Why.
        reason: &'static str,
    },
    /// Tell a session that a lock it holds is in doubt, or is no longer in doubt.
    Doubt {
        /// The name.
        name: LockName,
        /// The session that holds it.
        session: SessionId,
        /// How many milliseconds it is certain for; `None`: the doubt is over.
        valid_ms: Option<u64>,
    },
    /// Something for the history of a name, which nobody has to answer.
    Past {
        /// The name.
        name: LockName,
        /// The session.
        session: SessionId,
        /// In which mode it held the lock or wanted it.
        mode: Mode,
        /// What happened.
        past: Past,
    },
    /// A try has shown that another process holds a name that sessions wait for: other daemons may
    /// be asked for word.
    Contended(LockName),
    /// Send [`Input::Elapsed`] after this many milliseconds.
    Arm(Timer, u64),
}

/// Something that happened to a session and a name, and took long enough for the history
/// ([`Config::history_from_ms`](crate::Config)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Past {
    /// The session was granted the lock.
    Granted {
        /// How long it had waited.
        waited_ms: u64,
    },
    /// The session holds the lock no longer.
    Ended {
        /// How long it held the lock.
        held_ms: u64,
        /// How long it had waited for it.
        waited_ms: u64,
        /// How that ended.
        end: HoldEnd,
    },
    /// The session waits no longer, without a grant.
    GaveUp {
        /// How long it waited.
        waited_ms: u64,
        /// Why it ended.
        why: WaitEnd,
    },
}

/// How a session came not to hold a lock any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldEnd {
    /// It released the lock.
    Released,
    /// The session ended.
    SessionEnded,
    /// The lock is lost, for this reason.
    Lost(&'static str),
}

/// How a wait ended without a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitEnd {
    /// Its time ran out.
    TimedOut,
    /// Its session cancelled it.
    Cancelled,
    /// It was part of a deadlock.
    Deadlock,
    /// Its session ended.
    SessionEnded,
}

impl From<&Withdrawal> for WaitEnd {
    fn from(why: &Withdrawal) -> Self {
        match why {
            Withdrawal::Cancelled => Self::Cancelled,
            Withdrawal::TimedOut => Self::TimedOut,
            Withdrawal::Deadlock(_) => Self::Deadlock,
        }
    }
}

/// The engine's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The session holds the lock.
    Granted {
        /// In which mode.
        mode: Mode,
        /// Whether it held it before it asked.
        already: bool,
        /// Which slots it has.
        slots: Box<[u16]>,
        /// Its fence, if it asked for one.
        fence: Option<u64>,
    },
    /// Another session holds the name or waits for it; if one holds it, its claim.
    BusyHere(Option<Claim>),
    /// Another process holds the name.
    BusyElsewhere,
    /// As many requests wait for the name, or questions about it, as may.
    QueueFull,
    /// The session holds the lock in another mode, or holds another number of its slots.
    Mismatch,
    /// The name is held in a mode, or with a number of slots, that does not go with the request.
    Disagrees {
        /// How it is held.
        held: Mode,
        /// How the request wanted it.
        asked: Mode,
    },
    /// The request would wait for sessions that wait for its own; the text says which.
    Deadlock(Box<str>),
    /// The wait was cancelled.
    Cancelled,
    /// The wait took too long.
    TimedOut,
    /// The daemon stops.
    Closing,
    /// The session does not hold the lock any more.
    Released {
        /// Whether somebody had removed the lock file while it was held.
        file_gone: bool,
    },
    /// The session does not hold the lock.
    NotHeld {
        /// Whether another session of this daemon does.
        by_another: bool,
    },
    /// The session's lock is real.
    Real,
    /// The same, for a lock with slots or a fence.
    RealWith {
        /// Which slots it has.
        slots: Box<[u16]>,
        /// The fence of its grant.
        fence: Option<u64>,
    },
    /// The session's lock is real, and the stamp of its name is this old in milliseconds, if there
    /// is one.
    Stamped(Option<u64>),
    /// The session's lock was not real, and is not held any more.
    Lost(&'static str),
    /// Who holds the name.
    Peeked(View),
    /// The system failed the operation.
    Storage(Fault),
}

impl Answer {
    /// The answer to an acquire of a session that now holds the lock, or did `already`.
    pub(crate) fn granted(holder: &Claim, already: bool) -> Self {
        Self::Granted { mode: holder.mode(), already, slots: holder.slots.clone(), fence: holder.fence }
    }

    /// The answer to a verify of a session whose lock is real.
    pub(crate) fn real(holder: &Claim) -> Self {
        match (&*holder.slots, holder.fence) {
            ([], None) => Self::Real,
            (slots, fence) => Self::RealWith { slots: slots.into(), fence },
        }
    }
}
