//! Mailboxes: how other tasks reach a session. A notice waits in the mailbox until the session's
//! own task takes it out and writes it, so that only this task touches the session's socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::sync::locked;
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Answer, RequestId, SessionId};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::Introduction;

/// What a session learns from the engine or from the daemon.
#[derive(Debug)]
pub enum Notice {
    /// The engine answers a request.
    Answer {
        /// The name that the request was about.
        name: LockName,
        /// The request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// A lock that the session held is lost.
    Lost {
        /// Which.
        name: LockName,
        /// Why.
        reason: &'static str,
    },
    /// A lock that the session holds is in doubt, or no longer in doubt.
    Doubt {
        /// Which.
        name: LockName,
        /// For how many milliseconds it is certain to be held; `None`: the doubt is over.
        valid_ms: Option<u64>,
    },
    /// The boards of other daemons were read, or it takes too long.
    BoardsRead,
    /// The next process of the daemon will continue the session.
    HandOver,
    /// The daemon stops.
    Stop,
}

/// One session's mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    notices: Vec<Notice>,
    waker: Option<Waker>,
    introduction: Option<Box<Introduction>>,
    /// Where the session connected from, for logs.
    peer: Option<Arc<str>>,
}

/// What a session says of itself, and where it connected from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) introduction: Option<Box<Introduction>>,
    pub(crate) peer: Option<Arc<str>>,
}

impl Mailbox {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        locked(&self.inbox)
    }

    /// Adds a notice for a session that is about to look.
    pub(super) fn leave(&self, notice: Notice) {
        let mut inbox = self.inbox();
        if inbox.notices.capacity() == 0 {
            inbox.notices.reserve_exact(1);
        }
        inbox.notices.push(notice);
    }

    /// Moves the first notices out, in their order, at most `count`. Returns whether others stay.
    /// An empty mailbox keeps room for one.
    pub fn drain_into(&self, into: &mut Vec<Notice>, count: usize) -> bool {
        let mut inbox = self.inbox();
        if inbox.notices.len() > count {
            into.extend(inbox.notices.drain(..count));
            return true;
        }
        into.append(&mut inbox.notices);
        inbox.notices.shrink_to(1);
        false
    }

    /// Ready when there are notices.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inbox = self.inbox();
        if !inbox.notices.is_empty() {
            return Poll::Ready(());
        }
        match &mut inbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// How the session introduced itself.
    #[must_use]
    pub fn introduction(&self) -> Option<Box<Introduction>> {
        self.inbox().introduction.clone()
    }

    /// Whether there are notices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inbox().notices.is_empty()
    }

    /// Keeps where the session connected from.
    pub(crate) fn connected_from(&self, peer: Arc<str>) {
        self.inbox().peer = Some(peer);
    }

    /// Who the session is, for logs.
    pub(crate) fn identity(&self) -> Identity {
        let inbox = self.inbox();
        Identity { introduction: inbox.introduction.clone(), peer: inbox.peer.clone() }
    }

    /// Keeps how the session introduces itself.
    pub fn introduce(&self, introduction: Box<Introduction>) {
        self.inbox().introduction = Some(introduction);
    }
}

/// The mailboxes of all sessions.
#[derive(Debug)]
pub struct Mailboxes {
    shards: [Mutex<HashMap<u64, Arc<Mailbox>>>; SHARDS],
    next: AtomicU64,
    open: AtomicUsize,
    open_max: usize,
    emptied: Notify,
    stopping: AtomicBool,
    handing_over: AtomicBool,
}

/// The session limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this daemon already serves {sessions_max} sessions, its limit; try again later, or raise --sessions")]
pub struct TooManySessions {
    /// The limit.
    pub sessions_max: usize,
}

/// A mailbox for a new session.
#[derive(Debug)]
pub struct OpenedMailbox {
    /// The session's number.
    pub id: SessionId,
    /// Its mailbox.
    pub mailbox: Arc<Mailbox>,
}

impl Mailboxes {
    pub(crate) fn new(open_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            open_max,
            emptied: Notify::new(),
            stopping: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
        }
    }

    /// Makes a mailbox for a new session.
    ///
    /// # Errors
    /// If the session limit is reached.
    pub fn open(&self) -> Result<OpenedMailbox, TooManySessions> {
        if self.open.fetch_add(1, Ordering::SeqCst) >= self.open_max {
            self.uncount();
            return Err(TooManySessions { sessions_max: self.open_max });
        }
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        let mailbox: Arc<Mailbox> = Arc::default();
        self.shard(id).insert(id.0, Arc::clone(&mailbox));
        if self.stopping.load(Ordering::SeqCst) {
            mailbox.leave(Notice::Stop);
        }
        if self.handing_over.load(Ordering::SeqCst) {
            mailbox.leave(Notice::HandOver);
        }
        Ok(OpenedMailbox { id, mailbox })
    }

    /// Makes the mailbox of a session that the previous process opened. The limit does not apply:
    /// these sessions are already there.
    #[must_use]
    pub fn reopen(&self, session: SessionId, introduction: Option<Box<Introduction>>) -> Arc<Mailbox> {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.next.fetch_max(session.0 + 1, Ordering::Relaxed);
        let mailbox: Arc<Mailbox> = Arc::default();
        mailbox.inbox().introduction = introduction;
        self.shard(session).insert(session.0, Arc::clone(&mailbox));
        mailbox
    }

    /// Whether the session lives.
    #[must_use]
    pub fn is_open(&self, session: SessionId) -> bool {
        self.shard(session).contains_key(&session.0)
    }

    /// The number of the session that is opened next.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// New sessions get numbers from this one on.
    pub(crate) fn number_from(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Checks whether another session may be opened: before a handshake, at the end of which it is
    /// opened.
    ///
    /// # Errors
    /// If the session limit is reached.
    pub fn check_room(&self) -> Result<(), TooManySessions> {
        if self.count() < self.open_max { Ok(()) } else { Err(TooManySessions { sessions_max: self.open_max }) }
    }

    /// The session has ended.
    pub fn close(&self, session: SessionId) {
        if self.shard(session).remove(&session.0).is_some() {
            self.uncount();
        }
    }

    fn uncount(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_waiters();
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Puts a notice into a session's mailbox, unless the session has ended. The caller has to wake
    /// the returned waker.
    pub(super) fn post(&self, session: SessionId, notice: Notice) -> Option<Waker> {
        let mailbox = self.shard(session).get(&session.0).cloned();
        mailbox.and_then(|mailbox| deliver(&mailbox, notice))
    }

    /// Tells every session, including those about to begin, that the daemon stops.
    pub(crate) fn stop_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.post_to_all(|| Notice::Stop);
    }

    /// Tells every session, including those about to begin, that the next process will continue it.
    pub(crate) fn hand_over_all(&self) {
        self.handing_over.store(true, Ordering::SeqCst);
        self.post_to_all(|| Notice::HandOver);
    }

    fn post_to_all(&self, notice: fn() -> Notice) {
        for shard in &self.shards {
            let mailboxes: Vec<_> = locked(shard).values().cloned().collect();
            mailboxes.iter().filter_map(|mailbox| deliver(mailbox, notice())).for_each(Waker::wake);
        }
    }

    /// Waits until there are no sessions.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// How a session introduced itself.
    #[must_use]
    pub fn introduction(&self, session: SessionId) -> Introduction {
        let mailbox = self.shard(session).get(&session.0).cloned();
        let introduction = mailbox.and_then(|mailbox| mailbox.inbox().introduction.clone());
        introduction.map(|introduction| *introduction).unwrap_or_default()
    }

    /// Who a session is, for logs.
    pub(crate) fn identity(&self, session: SessionId) -> Identity {
        let mailbox = self.shard(session).get(&session.0).cloned();
        mailbox.map(|mailbox| mailbox.identity()).unwrap_or_default()
    }

    fn shard(&self, session: SessionId) -> MutexGuard<'_, HashMap<u64, Arc<Mailbox>>> {
        let places = SHARDS as u64;
        locked(&self.shards[usize::try_from(session.0 % places).expect("there are few shards")])
    }
}

fn deliver(mailbox: &Mailbox, notice: Notice) -> Option<Waker> {
    let mut inbox = mailbox.inbox();
    inbox.notices.push(notice);
    inbox.waker.take()
}
